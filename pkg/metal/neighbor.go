package metal

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"strings"
)

// neighbor is the hardware address that the kernel sent its answers to: a machine
// can make that up as well, but has to be on the same network for it.
func neighbor(of netip.Addr) (mac string, err error) {
	f, err := os.Open("/proc/net/arp")
	if err != nil {
		return "", err
	}
	defer f.Close()
	// Address, type, flags, hardware address, mask, device.
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) >= 4 && fields[0] == of.String() {
			return fields[3], nil
		}
	}
	return "", fmt.Errorf("%s is no neighbour: machines are installed on the server's own network", of)
}
