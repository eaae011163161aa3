package ac

import (
	"testing"
	"time"
)

// How late a PAUSE of a client lapses at the relay. messages.md names no bound.
func TestLiveProbePauseLapse(t *testing.T) {
	a := relayAddr(t)
	worst := time.Duration(0)
	for i := 0; i < 8; i++ {
		r := dialRaw(t, a, nil).open()
		r.msg(kPause, nil, 1, 300)
		began := time.Now()
		r.msg(kSend, r.id.Key, 1, 0, []byte("late"))
		if m := r.next(); m == nil || m[0] != uint64(kDeliver) {
			t.Fatal(m)
		}
		d := time.Since(began) - 300*time.Millisecond
		if d < -5*time.Millisecond {
			t.Errorf("%v too early", -d)
		}
		worst = max(worst, d)
		time.Sleep(time.Duration(i*37) * time.Millisecond)
	}
	t.Log("a PAUSE of 300 ms lapses up to", worst, "late")
	if worst > 100*time.Millisecond {
		t.Logf("suspicious: nothing in the specification allows a lateness of %v", worst)
	}
}
