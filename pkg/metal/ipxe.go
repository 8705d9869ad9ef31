package metal

import (
	"bytes"
	"text/template"
)

// scripts are what iPXE is told (https://ipxe.org/scripting). There is nothing secret in them.
var scripts = template.Must(template.New("").Parse(`
{{- define "who" -}}
#!ipxe
:ask
chain --replace {{.URL}}/ipxe?mac=${netX/mac}&uuid=${uuid}&serial=${serial:uristring} || goto again
:again
sleep 5
goto ask
{{end -}}
{{- define "install" -}}
#!ipxe
echo kimage: {{.Name}}
:ask
kernel {{.URL}}/boot/kernel initrd=initrd console=tty0 console=ttyS0,115200n8 panic=30 kimage.server={{.URL}} kimage.mac=${netX/mac} kimage.ip=${netX/ip} kimage.netmask=${netX/netmask} kimage.gateway=${netX/gateway} || goto again
initrd --name initrd {{.URL}}/boot/initrd || goto again
boot || goto again
:again
imgfree
sleep 5
goto ask
{{end -}}
{{- define "disk" -}}
#!ipxe
echo kimage: {{.Name}} is installed, and boots its disk
iseq ${platform} efi && exit 1 ||
sanboot --no-describe --drive 0x80 || exit 1
{{end -}}
{{- define "unknown" -}}
#!ipxe
echo kimage: no machine of the cluster file has MAC ${netX/mac}, UUID ${uuid}, serial number ${serial}
sleep 10
exit 1
{{end -}}
`))

// script is one of them. A firmware goes on with its next boot device when a loader ends
// with an error; one that ends well is shown in a menu.
func script(name, url, machine string) []byte {
	var b bytes.Buffer
	if err := scripts.ExecuteTemplate(&b, name, map[string]string{"URL": url, "Name": machine}); err != nil {
		panic("BUG: " + err.Error())
	}
	return b.Bytes()
}
