package ac

import (
	"context"
	"testing"
	"time"
)

// What STATS_REPORT says to a node that received a lot.
func TestLiveProbeStats(t *testing.T) {
	a := relayAddr(t)
	x, y := start(t, Config{Relays: []Address{a}}), start(t, Config{Relays: []Address{a}})
	for i := 0; i < 30; i++ {
		if _, err := x.Send(context.Background(), y.Key(), Class(i%7), make([]byte, 300_000)); err != nil {
			t.Fatal(err)
		}
	}
	for i := 0; i < 30; i++ {
		y.want(EventMessage)
	}
	time.Sleep(50 * time.Millisecond)
	m, err := y.Stats(ctxOf(t))
	t.Log("receiver:", m, err)
	m, err = x.Stats(ctxOf(t))
	t.Log("sender:", m, err)
}
