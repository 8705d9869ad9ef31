package bootstrap

import "testing"

func TestUnitRuns(t *testing.T) {
	for shown, want := range map[string]bool{
		"ActiveState=active\n":               true,
		"ActiveState=activating\nJob=3817\n": true,
		"ActiveState=deactivating\n":         true,
		"ActiveState=inactive\n":             false,
		"Job=0\nActiveState=inactive\n":      false,
		"Job=\nActiveState=failed\n":         false,
		"Job=3817\nActiveState=inactive\n":   true, // systemctl --no-block start has just ended
		"Job=3817\nActiveState=failed\n":     true, // again
	} {
		if got, err := unitRuns(shown); err != nil || got != want {
			t.Errorf("%q: got %v, %v, want %v", shown, got, err, want)
		}
	}
	for _, shown := range []string{"", "Job=3817\n", "ActiveState=maintenance\n"} {
		if got, err := unitRuns(shown); err == nil {
			t.Errorf("%q: got %v, want an error", shown, got)
		}
	}
}
