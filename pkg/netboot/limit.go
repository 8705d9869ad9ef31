package netboot

import (
	"sync"
	"time"
)

// How often one machine is answered, and all together. A ROM asks four times in fifteen
// seconds, then iPXE does.
const (
	burst, perSecond       = 12, 1.0
	burstAll, perSecondAll = 400, 200.0
	machines               = 4096 // that are remembered
)

// limiter keeps the server from being made to shout.
type limiter struct {
	now func() time.Time

	mu  sync.Mutex
	all bucket
	by  map[[6]byte]*bucket
}

// bucket has tokens that come back with time. The zero one is full.
type bucket struct {
	used float64
	last time.Time
}

func (b *bucket) take(now time.Time, size, rate float64) bool {
	b.used = max(0, b.used-now.Sub(b.last).Seconds()*rate)
	b.last = now
	if b.used+1 > size {
		return false
	}
	b.used++
	return true
}

// allow says whether a machine is answered now.
func (l *limiter) allow(mac [6]byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	b := l.by[mac]
	if b == nil {
		if len(l.by) >= machines {
			for m, old := range l.by { // a full bucket is as good as none
				if now.Sub(old.last).Seconds()*perSecond >= old.used {
					delete(l.by, m)
				}
			}
			if len(l.by) >= machines {
				return false
			}
		}
		if l.by == nil {
			l.by = map[[6]byte]*bucket{}
		}
		b = &bucket{last: now}
		l.by[mac] = b
	}
	return b.take(now, burst, perSecond) && l.all.take(now, burstAll, perSecondAll)
}
