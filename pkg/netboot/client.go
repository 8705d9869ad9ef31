package netboot

import (
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Firmware is how a machine loads what it boots.
type Firmware string

const (
	BIOS Firmware = "BIOS" // PXE, over TFTP
	UEFI Firmware = "UEFI" // PXE, over TFTP
	HTTP Firmware = "HTTP" // UEFI's HTTP boot
)

// Client is a machine that boots from the network.
type Client struct {
	MAC      net.HardwareAddr
	UUID     string // SMBIOS', as Linux shows it: lower case; empty: it does not say
	Arch     uint16 // RFC 4578, 2.1
	Firmware Firmware
	IPXE     bool // it is iPXE that asks, which can fetch an URL
}

func (c Client) String() string {
	if c.IPXE {
		return fmt.Sprintf("%s (iPXE, %s, architecture %d)", c.MAC, c.Firmware, c.Arch)
	}
	return fmt.Sprintf("%s (%s, architecture %d)", c.MAC, c.Firmware, c.Arch)
}

// Architectures (IANA's "Processor Architecture Types" of DHCPv6, which DHCPv4 shares).
const (
	archBIOS      = 0
	archX64       = 7 // by the letter it is EBC, but this is what firmware sends
	archEBC       = 9 // and by the letter x64
	archARM64     = 11
	archHTTPX86   = 15
	archHTTPX64   = 16
	archHTTPARM   = 18
	archHTTPARM64 = 19
)

// Options that package dhcpv4 has no name for.
var (
	optionUUID = dhcpv4.GenericOptionCode(97)  // RFC 4578, 2.3
	optionIPXE = dhcpv4.GenericOptionCode(175) // https://ipxe.org/howto/dhcpd
)

// clientOf reads who asks. Without ok it does not boot from the network.
func clientOf(m *dhcpv4.DHCPv4) (c Client, ok bool) {
	class := m.ClassIdentifier()
	pxe, http := strings.HasPrefix(class, "PXEClient"), strings.HasPrefix(class, "HTTPClient")
	c = Client{MAC: slices.Clone(m.ClientHWAddr), IPXE: isIPXE(m), Firmware: UEFI}
	if !pxe && !http && !c.IPXE {
		return Client{}, false
	}
	if arch := m.Options.Get(dhcpv4.OptionClientSystemArchitectureType); len(arch) >= 2 {
		c.Arch = binary.BigEndian.Uint16(arch) // the first is the one that it runs
	} else if f := strings.Split(class, ":"); len(f) >= 3 && f[1] == "Arch" {
		n, _ := strconv.ParseUint(f[2], 10, 16)
		c.Arch = uint16(n)
	}
	switch {
	case c.IPXE && c.Arch == archBIOS, pxe && c.Arch == archBIOS:
		c.Firmware = BIOS
	case c.IPXE:
	case http, slices.Contains([]uint16{archHTTPX86, archHTTPX64, archHTTPARM, archHTTPARM64}, c.Arch):
		c.Firmware = HTTP // some say HTTPClient with PXE's architecture
	}
	c.UUID = uuidOf(m.Options.Get(optionUUID))
	return c, true
}

// isIPXE: it says so in the user class, without the length that RFC 3004 wants, or has
// options of its own.
func isIPXE(m *dhcpv4.DHCPv4) bool {
	class := string(m.Options.Get(dhcpv4.OptionUserClassInformation))
	if class == "iPXE" || slices.Contains(m.UserClass(), "iPXE") {
		return true
	}
	return m.Options.Has(optionIPXE) && class != "gPXE"
}

// uuidOf reads option 97. Its bytes are as in SMBIOS, where the first three fields are
// little-endian (seen of UEFI and of iPXE).
func uuidOf(b []byte) string {
	if len(b) != 17 || b[0] != 0 {
		return ""
	}
	u := slices.Clone(b[1:])
	slices.Reverse(u[0:4])
	slices.Reverse(u[4:6])
	slices.Reverse(u[6:8])
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}
