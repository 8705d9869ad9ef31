package etcd

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/pkg/need"
)

// edit replaces text that is in a file exactly once.
type edit struct{ file, old, new string }

// TestMutationsAreCaught breaks one rule of the protocol at a time, in a copy
// of the sources that only the compiler sees, and expects the named test to
// fail with the named words.
func TestMutationsAreCaught(t *testing.T) {
	if testing.Short() {
		need.Missing(t, "the patience for a minute or more (-short)")
	}
	for _, c := range []struct {
		name  string
		edits []edit
		test  string
		says  string
	}{
		{"founding on a majority", []edit{
			{"decide.go", "			return false\n		}\n	}\n	return true", "			missing++\n		}\n	}\n	return missing <= (len(s.Roster.Founding)-1)/2"},
			{"decide.go", "	for _, name := range s.Roster.Founding {\n		if name == s.Self {\n			continue\n		}\n		st, ok := current[name]\n		if !ok || st.Data", "	missing := 0\n	for _, name := range s.Roster.Founding {\n		if name == s.Self {\n			continue\n		}\n		st, ok := current[name]\n		if !ok || st.Data"},
		}, "TestSchedules", "S1: "},
		{"incarnation kept after a wipe", []edit{
			{"facts.go", "return f.Incarnation.Started && !f.Data", "return false"},
		}, "TestSchedules", "S2: "},
		{"record told before it is written", []edit{
			{"member.go", "	writes uint64     // see State.Writes", "	writes uint64\n	later any"},
			{"member.go", "	m.writes++\n	return m.disk.save(", "	m.writes++\n	if file == recordFile {\n		content, m.later = m.later, content\n		if content == nil {\n			return nil\n		}\n	}\n	return m.disk.save("},
			{"member.go", "	if own := s.Facts.Incarnation; own.ID", "	if rec, ok := m.later.(Record); ok {\n		s.Facts.Record = &rec\n	}\n	if own := s.Facts.Incarnation; own.ID"},
		}, "TestSchedules", "S1: |L1: "},
		{"record told before it is synced", []edit{
			{"facts.go", "atomicfile.Write(filepath.Join(d.dir, factsDir, file)", "os.WriteFile(filepath.Join(d.dir, factsDir, file)"},
		}, "TestToldIsDurable", "not synced before it is told"},
		{"a cached answer counts", []edit{
			{"decide.go", "a.Err == \"\" && a.AskedAfter == s.Writes", "a.Err == \"\""},
		}, "TestAllSchedulesOfTwo", "S1: |L1: "},
		{"a decision outlives a write", []edit{
			{"member.go", "now.Writes != s.Writes || now.Facts.Incarnation.ID != s.Facts.Incarnation.ID", "now.Facts.Incarnation.ID != s.Facts.Incarnation.ID"},
			{"member.go", "held == nil || held.Token() != rec.Token() {\n			return errMoved", "held == nil {\n			return errMoved"},
		}, "TestAllSchedulesOfTwo", "S1: |L1: "},
		{"a founded node founds again", []edit{
			{"member.go", "	case s.Facts.Data || s.Facts.joining():\n		return fmt.Errorf", "	case s.Facts.Incarnation.Started:\n		return fmt.Errorf"},
			{"decide.go", "	case s.Facts.Data:\n		return withData", "	case s.Facts.Data && s.Facts.held(s.Self).ClusterID() == s.Facts.Cluster.ID:\n		return withData"},
			{"member.go", "now.Facts.Data || now.Facts.lost() || held == nil", "held == nil"},
			{"member.go", "		return m.disk.move(made, now.Facts.Incarnation.ID)", "		m.disk.move(now.Facts.Incarnation.ID, asideHead)\n		return m.disk.move(made, now.Facts.Incarnation.ID)"},
		}, "TestSchedules", "S1: |L1: "},
		{"a fixed token", []edit{
			{"restore.go", "\"--initial-cluster-token\", rec.Token()", "\"--initial-cluster-token\", rec.ClusterUID"},
		}, "TestSchedules", "S2: "},
		{"who left the roster is removed before its replacement is there", []edit{
			{"repair.go", "		if !voter[r.Name] {", "		if !voter[r.Name] && r.Name == s.Self {"},
		}, "TestNextStep", "stays until"},
		{"a member that etcd hears is removed", []edit{
			{"repair.go", "		case s.Hears[m.ID]:", "		case false:"},
		}, "TestNextStep", "two machines"},
		{"removed without proof of a quorum", []edit{
			{"repair.go", "	if proven >= others/2+1 {", "	if true {"},
		}, "TestNextStep", "c cannot be removed"},
		{"a second change before the first is committed", []edit{
			{"repair.go", "		if step != want && (want.Do != Register || step.Do != Register) {", "		if step = want; false {"},
			{"repair.go", "err != nil || step.Do != Register {", "err != nil || true {"},
		}, "TestStepIsOfAFreshLook", "S3: "},
		{"a machine joins as a member that was added for another incarnation", []edit{
			{"repair.go", "m.Incarnation != \"\" && m.Incarnation == s.Facts.Incarnation.ID {", "m.Incarnation != \"\" {"},
			{"repair.go", "Incarnation: m.Incarnation, Member: m.ID", "Incarnation: s.Facts.Incarnation.ID, Member: m.ID"},
		}, "TestRepairSchedules", "S2: |member"},
		{"etcd runs on after its data was removed", []edit{
			{"agent.go", "		if err := a.cfg.Halt(ctx); err != nil {\n			return err\n		}\n		return a.member.renew(s)", "		return a.member.renew(s)"},
		}, "TestRepairSchedules", "L2-L4: "},
		{"who left the roster is not asked before a founding", []edit{
			{"decide.go", "s.silent(s.Roster.Left, current)", "\"\""},
			{"survey.go", "if !s.Facts.Data {", "if false {"},
		}, "TestWhoLeftIsAsked", "S1: "},
		{"counts of a disk and of its copy are the same", []edit{
			{"corrupt.go", "made != \"\" && c.Tag", "made == \"none\" && c.Tag"},
		}, "TestOldDiskIsNoticed", "after a start"},
		{"an agent counts only its starts", []edit{
			{"agent.go", " || now.Sub(a.counted) >= a.cfg.Count", ""},
		}, "TestOldDiskIsNoticed", "after ten minutes"},
		{"started as a new cluster", []edit{
			{"launch.go", "\"--initial-cluster-state=existing\"", "\"--initial-cluster-state=new\""},
		}, "TestSchedules", "as a new cluster"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			overlay := struct{ Replace map[string]string }{map[string]string{}}
			for _, e := range c.edits {
				path, err := filepath.Abs(e.file)
				if err != nil {
					t.Fatal(err)
				}
				from := path
				if overlay.Replace[path] != "" {
					from = overlay.Replace[path]
				}
				text, err := os.ReadFile(from)
				if err != nil {
					t.Fatal(err)
				}
				if n := strings.Count(string(text), e.old); n != 1 {
					t.Fatalf("%s holds %d times, not once:\n%s", e.file, n, e.old)
				}
				overlay.Replace[path] = filepath.Join(dir, e.file)
				if err := os.WriteFile(overlay.Replace[path], []byte(strings.Replace(string(text), e.old, e.new, 1)), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			data, err := json.Marshal(overlay)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(dir, "overlay.json")
			if err := os.WriteFile(file, data, 0o644); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("go", "test", "-vet=off", "-count=1", "-overlay="+file, "-run=^"+c.test+"$", ".", "-split").CombinedOutput()
			if err == nil || !regexp.MustCompile(c.says).Match(out) {
				t.Errorf("not caught (%v, expected %q):\n%s", err, c.says, out)
			} else {
				t.Logf("%.200s", out)
			}
		})
	}
}
