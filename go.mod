module github.com/kimage-project/kimage

go 1.26

require (
	github.com/containerd/go-dmverity v0.1.0
	github.com/diskfs/go-diskfs v1.9.4
	go.yaml.in/yaml/v3 v3.0.4
	golang.org/x/sys v0.43.0
)

require github.com/google/uuid v1.6.0 // indirect
