package install

import (
	"context"
	"os"
	"time"
)

// NewClientStall notices sooner.
var NewClientStall = newClient

// WriteImpatiently is WriteImage that pauses a hundredth of the time.
func WriteImpatiently(ctx context.Context, disk *os.File, index Index, fetch Fetch, tell func(Progress), patience time.Duration) (*Unfinished, error) {
	w := writer{index: index, fetch: fetch, tell: tell, pause: firstPause / 100, longest: longestPause / 100, patience: patience}
	return w.write(ctx, disk)
}
