package images

import (
	"fmt"
	"strings"
	"text/tabwriter"
)

// Verification is what kimage verify shows.
type Verification struct {
	APIVersion string  `json:"apiVersion"`
	File       string  `json:"file"`
	Format     string  `json:"format"`
	Name       string  `json:"name"`    // empty: no manifest could be read
	ImageID    string  `json:"imageID"` // the same
	Verified   bool    `json:"verified"`
	Checks     []Check `json:"checks"`
}

// What can become of a check.
const (
	CheckOK        = "ok"
	CheckDiffers   = "differs"
	CheckNotJudged = "notJudged" // for the reason in Why; it does not make an image unverified
)

// Check is one thing that was judged, or could not be.
type Check struct {
	Thing  string `json:"thing"`
	Result string `json:"result"`
	With   string `json:"with,omitempty"` // what it was compared with
	Got    string `json:"got,omitempty"`
	Want   string `json:"want,omitempty"` // empty: Got is what is wrong
	Remedy string `json:"remedy,omitempty"`
	Why    string `json:"why,omitempty"`
}

// remedies are for what differs.
const (
	remedyAgain  = "write or copy the image again from where it was baked, or bake it again"
	remedyBooted = "verify what was baked: a disk that was booted has changed since"
)

func (v *Verification) add(c Check) { v.Checks = append(v.Checks, c) }

func (v *Verification) ok(thing, with string) {
	v.add(Check{Thing: thing, Result: CheckOK, With: with})
}

func (v *Verification) notJudged(thing, why string) {
	v.add(Check{Thing: thing, Result: CheckNotJudged, Why: why})
}

func (v *Verification) differs(thing, with, got, want string) {
	v.add(Check{Thing: thing, Result: CheckDiffers, With: with, Got: got, Want: want, Remedy: remedyAgain})
}

// compare says whether got is want.
func (v *Verification) compare(thing, with, got, want string) bool {
	if got != want {
		v.differs(thing, with, got, want)
		return false
	}
	v.ok(thing, with)
	return true
}

// of are the things with that result.
func (v *Verification) of(result string) (things []string) {
	for _, c := range v.Checks {
		if c.Result == result {
			things = append(things, c.Thing)
		}
	}
	return things
}

// String is the verification for people: a line for everything, then the verdict.
func (v *Verification) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	for _, c := range v.Checks {
		what := map[string]string{CheckOK: "ok", CheckDiffers: "DIFFERS", CheckNotJudged: "not judged"}[c.Result]
		fmt.Fprintf(w, "%s\t%s\t%s\n", what, c.Thing, c.With+c.Why)
		if c.Result == CheckDiffers {
			if c.Want != "" {
				fmt.Fprintf(w, "\t\tgot   %s\n\t\twant  %s\n", oneLine(c.Got), oneLine(c.Want))
			} else {
				fmt.Fprintf(w, "\t\t%s\n", oneLine(c.Got))
			}
		}
	}
	w.Flush()
	return b.String() + "\n" + v.Verdict() + "\n"
}

func oneLine(s string) string { return strings.NewReplacer("\n", `\n`, "\t", `\t`).Replace(s) }

// Verdict is the answer in one line.
func (v *Verification) Verdict() string {
	name := v.File
	if v.ImageID != "" {
		name += ", imageID " + v.ImageID
	}
	judged, wrong := len(v.Checks)-len(v.of(CheckNotJudged)), v.of(CheckDiffers)
	if len(wrong) == 0 {
		return fmt.Sprintf("verified: %s: all %d things that were judged are what they are recorded to be", name, judged)
	}
	remedy := remedyAgain
	for _, c := range v.Checks {
		if c.Remedy == remedyBooted {
			remedy = remedyBooted
		}
	}
	return fmt.Sprintf("NOT VERIFIED: %s: %d of %d things differ: %s; %s", name, len(wrong), judged, strings.Join(wrong, ", "), remedy)
}
