package debs

import "testing"

func TestMirrorInSources(t *testing.T) {
	for _, c := range []struct{ data, want string }{
		{"Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\nSigned-By: /x.gpg\n", "http://mirror.example/debian"},
		{"Types: deb\nURIs: http://security.example/debian-security\nSuites: bookworm-security\nComponents: main\n\n" +
			"Types: deb deb-src\nURIs: https://mirror.example/debian/\nSuites: trixie\nComponents: main contrib\n", "https://mirror.example/debian/"},
		{"Types: deb-src\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: main\n", ""},
		{"Types: deb\nURIs: https://packages.example/tool\nSuites: stable\nComponents: main\n", ""},
		{"# Types: deb\n", ""},
	} {
		if got := mirrorInSources(c.data); got != c.want {
			t.Errorf("%q: %q, want %q", c.data, got, c.want)
		}
	}
}

func TestMirrorInList(t *testing.T) {
	for _, c := range []struct{ data, want string }{
		{"deb http://mirror.example/debian bookworm main\n", "http://mirror.example/debian"},
		{"# deb http://old.example/debian bookworm main\ndeb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian trixie main contrib\n", "http://mirror.example/debian"},
		{"deb http://ppa.example/tool stable main\n", ""},
		{"deb http://mirror.example/debian-security bookworm-security main\n", ""},
		{"deb [unclosed\n", ""},
	} {
		if got := mirrorInList(c.data); got != c.want {
			t.Errorf("%q: %q, want %q", c.data, got, c.want)
		}
	}
}
