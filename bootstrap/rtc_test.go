package bootstrap

import (
	"testing"
	"time"
)

func TestAheadOf(t *testing.T) {
	const rtc = "1795790908\n"
	at := time.Unix(1795790908, 0)
	for name, c := range map[string]struct {
		rtc   string
		now   time.Time
		moved bool
		bad   bool
	}{
		"behind":                {rtc, at.Add(-time.Minute), true, false},
		"as precise as seconds": {rtc, at.Add(-rtcBehind), false, false},
		"the same":              {rtc, at.Add(400 * time.Millisecond), false, false},
		"set two years ahead":   {rtc, at.AddDate(2, 0, 0), false, false},
		"no number":             {"\n", at, false, true},
	} {
		to, err := aheadOf(c.rtc, c.now)
		if (err != nil) != c.bad || to.IsZero() == c.moved || c.moved && !to.Equal(at) {
			t.Errorf("%s: %v, %v", name, to, err)
		}
	}
}
