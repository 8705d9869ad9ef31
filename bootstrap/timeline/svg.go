package timeline

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// The picture's measures, in pixels. One of 45 rows fits on a screen.
const (
	width     = 1600.0
	groupX    = 16.0
	nameX     = 104.0
	axisX     = 320.0
	axisRight = 1576.0
	rowHeight = 16.0
	barHeight = 11.0
	groupGap  = 7.0
	noteLine  = 18.0
	maxTicks  = 14
	maxWords  = 90 // letters at a bar; its tip has them all
	// A bar is never narrower: it would not be seen.
	minBar = 2.0
	// A letter's width, in parts of its size: fonts differ, and too much is
	// better than words that overlap.
	letter = 0.56
)

// Colours by kind; that of words is the darker one.
var fills = [...]string{kindBoot: "#8a94a0", kindUnit: "#7fa6c9", kindKimage: "#2f6fb3", kindWait: "#e8b33a", kindWork: "#5fa777", kindStop: "#d0342c",
	kindReady: "#1e8e3e", kindKubeadm: "#8a63b8", kindEtcd: "#e07b39", kindPod: "#2aa198", kindRuns: "#d5dde6"}

// legend is what the colours mean that their group does not say.
var legend = [...]struct {
	kind kind
	name string
}{{kindUnit, "unit starts"}, {kindKimage, "unit of kimage"}, {kindRuns, "runs"}, {kindWork, "agent works"}, {kindWait, "agent waits"}, {kindStop, "a person must act"}}

const style = `text{font-family:"Liberation Sans",Arial,Helvetica,sans-serif;font-size:12px;fill:#1d2733}` +
	`.t{font-size:20px;font-weight:bold}.n{font-size:13px;fill:#4a5663}.g{font-weight:bold;fill:#4a5663}.a{font-size:11px;fill:#6b7682}` +
	`.v{font-size:11px;fill:#39434e;stroke:#fff;stroke-width:3px;stroke-linejoin:round;paint-order:stroke}.m{font-size:12px;font-weight:bold}`

// canvas collects elements.
type canvas struct {
	bytes.Buffer
	chart
}

func (c chart) draw() []byte {
	v := &canvas{chart: c}
	top := 34 + noteLine*float64(len(c.notes)) + 22
	bottom := top + groupGap
	for _, g := range c.groups {
		bottom += g.height()
	}
	height := bottom + 46
	fmt.Fprintf(v, `<?xml version="1.0" encoding="UTF-8"?>`+"\n"+`<svg xmlns="http://www.w3.org/2000/svg" width="%s" height="%s" viewBox="0 0 %[1]s %[2]s">`+"\n", px(width), px(height))
	fmt.Fprintf(v, "<title>%s</title>\n<style>%s</style>\n", escape(c.title), style)
	v.rect(0, 0, width, height, "#ffffff", "")
	v.text("t", groupX, 30, "start", c.title)
	for i, n := range c.notes {
		v.text("n", groupX, 34+noteLine*float64(i+1), "start", clip(n, width-2*groupX, 13))
	}
	v.bands(top)
	v.ticks(top, bottom)
	v.drawMarks(top, bottom)
	v.drawGroups(top)
	v.drawLegend(bottom + 34)
	v.WriteString("</svg>\n")
	return v.Bytes()
}

func (g group) height() float64 {
	if len(g.rows) == 0 {
		return 0
	}
	return groupGap + rowHeight*float64(len(g.rows))
}

// x is where a time is on the axis.
func (c chart) x(at time.Duration) float64 {
	at = min(max(at, c.from), c.to)
	return axisX + (axisRight-axisX)*float64(at-c.from)/float64(max(c.to-c.from, 1))
}

// bands set one group off from the next.
func (v *canvas) bands(y float64) {
	shade := false
	for _, g := range v.groups {
		if len(g.rows) == 0 {
			continue
		}
		if shade = !shade; shade {
			v.rect(0, y+groupGap/2, width, g.height(), "#f4f7fa", "")
		}
		y += g.height()
	}
}

// ticks are at whole steps since the beginning of the axis.
func (v *canvas) ticks(top, bottom float64) {
	step := tickStep(v.to - v.from)
	for at := time.Duration(0); at <= v.to-v.from; at += step {
		x := v.x(v.from + at)
		v.line(x, top, x, bottom, "#dfe5eb", 1, "")
		v.text("a", x, bottom+12, "middle", tickName(at, step))
	}
}

// tickStep gives at most maxTicks.
func tickStep(span time.Duration) time.Duration {
	for _, s := range []time.Duration{1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800} {
		if span <= maxTicks*s*time.Second {
			return s * time.Second
		}
	}
	const day = 24 * time.Hour
	return (span/maxTicks/day + 1) * day
}

func tickName(at, step time.Duration) string {
	switch {
	case at == 0:
		return "0"
	case step < time.Minute:
		return strconv.Itoa(int(at.Seconds())) + " s"
	case step < time.Hour:
		return strconv.Itoa(int(at.Minutes())) + " min"
	}
	return strconv.Itoa(int(at.Hours())) + " h"
}

func (v *canvas) drawMarks(top, bottom float64) {
	for _, m := range v.marks {
		x := v.x(m.at)
		v.line(x, top, x, bottom, fills[m.kind], 1.5, "4 3")
		anchor := "middle"
		if half := textWidth(m.name+" "+seconds(m.at-v.from), 12) / 2; x+half > width-8 {
			anchor, x = "end", width-8
		}
		fmt.Fprintf(v, `<text class="m" x="%s" y="%s" text-anchor="%s" style="fill:%s">%s</text>`+"\n", px(x), px(top-4), anchor, fills[m.kind], escape(m.name+" "+seconds(m.at-v.from)))
	}
}

func (v *canvas) drawGroups(y float64) {
	for _, g := range v.groups {
		if len(g.rows) == 0 {
			continue
		}
		y += groupGap
		v.text("g", groupX, y+rowHeight-4, "start", g.name)
		for _, r := range g.rows {
			v.drawRow(r, y)
			y += rowHeight
		}
	}
}

func (v *canvas) drawRow(r row, y float64) {
	base := y + rowHeight - 4
	v.text("", nameX, base, "start", clip(r.name, axisX-nameX-8, 12))
	left, right := math.Inf(1), math.Inf(-1) // of what is not kindRuns
	for _, b := range r.bars {
		if b.from > v.to {
			break // a start long after
		}
		x, h := v.x(b.from), barHeight
		w := max(v.x(b.to)-x, minBar)
		if b.kind == kindRuns {
			h = 4
		} else {
			left, right = min(left, x), max(right, x+w)
		}
		tip := fmt.Sprintf("%s, %s to %s", r.name, seconds(b.from-v.from), seconds(b.to-v.from))
		if r.text != "" {
			tip += ": " + r.text
		}
		v.rect(x, y+(rowHeight-h)/2, w, h, fills[b.kind], tip)
	}
	v.label(v.rowWords(r), left, right, base)
}

// rowWords are what stands at a row's bars.
func (v *canvas) rowWords(r row) string {
	const moment = 50 * time.Millisecond
	d := r.total()
	s := seconds(d)
	if d < moment {
		s = "at " + seconds(r.bars[0].from-v.from)
	}
	if r.again > 0 {
		s += ", again at " + seconds(r.again-v.from)
	}
	if r.text != "" {
		s += ": " + r.text
	}
	return clip(s, maxWords, 1/letter)
}

// label puts words to the right of the bars; where there is too little room, to
// the left of them, or else upon them.
func (v *canvas) label(words string, left, right, base float64) {
	const size, gap = 11, 5
	w := textWidth(words, size)
	switch room := axisRight - right - gap; {
	case w <= room:
		v.text("v", right+gap, base, "start", words)
	case w <= left-axisX-gap:
		v.text("v", left-gap, base, "end", words)
	default:
		v.text("v", left+gap, base, "start", clip(words, axisRight-left-gap, size))
	}
}

func (v *canvas) drawLegend(y float64) {
	x := axisX
	for _, l := range legend {
		v.rect(x, y-9, 14, 10, fills[l.kind], "")
		v.text("a", x+19, y, "start", l.name)
		x += 19 + textWidth(l.name, 11) + 22
	}
}

// rect has a tip that shows when the mouse is on it.
func (v *canvas) rect(x, y, w, h float64, fill, tip string) {
	fmt.Fprintf(v, `<rect x="%s" y="%s" width="%s" height="%s" fill="%s"`, px(x), px(y), px(w), px(h), fill)
	if tip == "" {
		v.WriteString("/>\n")
		return
	}
	fmt.Fprintf(v, "><title>%s</title></rect>\n", escape(tip))
}

func (v *canvas) line(x1, y1, x2, y2 float64, stroke string, w float64, dashes string) {
	fmt.Fprintf(v, `<line x1="%s" y1="%s" x2="%s" y2="%s" stroke="%s" stroke-width="%s"`, px(x1), px(y1), px(x2), px(y2), stroke, px(w))
	if dashes != "" {
		fmt.Fprintf(v, ` stroke-dasharray="%s"`, dashes)
	}
	v.WriteString("/>\n")
}

func (v *canvas) text(class string, x, y float64, anchor, words string) {
	v.WriteString("<text")
	if class != "" {
		fmt.Fprintf(v, ` class="%s"`, class)
	}
	fmt.Fprintf(v, ` x="%s" y="%s"`, px(x), px(y))
	if anchor != "start" {
		fmt.Fprintf(v, ` text-anchor="%s"`, anchor)
	}
	fmt.Fprintf(v, ">%s</text>\n", escape(words))
}

func px(x float64) string { return strconv.FormatFloat(math.Round(x*10)/10, 'f', -1, 64) }

var entities = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;")

// escape also replaces what XML cannot hold at all. encoding/xml would do, and
// the agent has no other use for it.
func escape(s string) string {
	return entities.Replace(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s))
}

func textWidth(s string, size float64) float64 {
	return float64(utf8.RuneCountInString(s)) * size * letter
}

// clip shortens words to what fits.
func clip(s string, room, size float64) string {
	if textWidth(s, size) <= room {
		return s
	}
	r := []rune(s)
	return string(r[:min(len(r), max(0, int(room/(size*letter))-1))]) + "…"
}
