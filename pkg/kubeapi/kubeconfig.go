package kubeapi

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v3"
)

// kubeconfig is what this package reads of a kubeconfig file.
type kubeconfig struct {
	CurrentContext string `yaml:"current-context"`
	Clusters       []struct {
		Name    string
		Cluster struct {
			Server string
			CAData string `yaml:"certificate-authority-data"`
			CA     string `yaml:"certificate-authority"`
		}
	}
	Users []struct {
		Name string
		User struct {
			CertData string `yaml:"client-certificate-data"`
			Cert     string `yaml:"client-certificate"`
			KeyData  string `yaml:"client-key-data"`
			Key      string `yaml:"client-key"`
			Token    string
		}
	}
	Contexts []struct {
		Name    string
		Context struct{ Cluster, User string }
	}
}

// ReadKubeconfig reads the current context of a kubeconfig file.
func ReadKubeconfig(file string) (Config, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return Config{}, err
	}
	var k kubeconfig
	if err := yaml.Unmarshal(data, &k); err != nil {
		return Config{}, fmt.Errorf("reading %s: %w", file, err)
	}
	c, err := k.current(filepath.Dir(file))
	if err != nil {
		return Config{}, fmt.Errorf("reading %s: %w", file, err)
	}
	return c, nil
}

func (k kubeconfig) current(dir string) (c Config, err error) {
	cluster, user, ok := "", "", false
	for _, x := range k.Contexts {
		if x.Name == k.CurrentContext {
			cluster, user, ok = x.Context.Cluster, x.Context.User, true
		}
	}
	if !ok {
		return c, fmt.Errorf("it has no context %q", k.CurrentContext)
	}
	for _, x := range k.Clusters {
		if x.Name != cluster {
			continue
		}
		c.Server = x.Cluster.Server
		if c.CA, err = either(x.Cluster.CAData, x.Cluster.CA, dir); err != nil {
			return c, err
		}
	}
	for _, x := range k.Users {
		if x.Name != user {
			continue
		}
		c.Token = x.User.Token
		if c.Cert, err = either(x.User.CertData, x.User.Cert, dir); err != nil {
			return c, err
		}
		if c.Key, err = either(x.User.KeyData, x.User.Key, dir); err != nil {
			return c, err
		}
	}
	if c.Server == "" {
		return c, fmt.Errorf("it has no cluster %q", cluster)
	}
	return c, nil
}

// either is base64 data, or the content of a file.
func either(data, file, dir string) ([]byte, error) {
	if data != "" {
		return base64.StdEncoding.DecodeString(data)
	}
	if file == "" {
		return nil, nil
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(dir, file)
	}
	return os.ReadFile(file)
}
