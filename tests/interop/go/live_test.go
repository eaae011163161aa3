package ac

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func ctxOf(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func relayAddr(t *testing.T) Address {
	s := os.Getenv("AC_RELAY")
	if s == "" {
		t.Skip("set AC_RELAY=ac://KEY@host:port to run the tests against a relay")
	}
	a, err := ParseAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// command gives the reference command, or skips.
func command(t *testing.T) string {
	s := os.Getenv("AC_COMMAND")
	if s == "" {
		s, _ = exec.LookPath("awesomeconnect")
	}
	if s == "" {
		t.Skip("set AC_COMMAND to the awesomeconnect command to run this test")
	}
	return s
}

type node struct {
	*Client
	t  *testing.T
	ch chan Event
}

func start(t *testing.T, cfg Config) *node {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{c, t, make(chan Event, 100000)}
	go func() {
		for e := range c.Events() {
			n.ch <- e
		}
		close(n.ch)
	}()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 6*time.Second)
		defer cancel()
		if err := c.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	if err := c.WaitConnected(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	return n
}

func (n *node) want(typ EventType) Event {
	n.t.Helper()
	d := time.After(20 * time.Second)
	for {
		select {
		case e, ok := <-n.ch:
			if !ok {
				n.t.Fatalf("ended before %s", typ)
			}
			if e.Type == typ {
				return e
			}
			if e.Type == EventMessage || e.Type == EventGap {
				n.t.Fatalf("got %s %.40q, wanted %s", e.Type, e.Payload, typ)
			}
		case <-d:
			n.t.Fatalf("no %s came", typ)
		}
	}
}

func roomName() string {
	b := make([]byte, 6)
	rand.Read(b)
	return fmt.Sprintf("go/%x", b)
}

func (n *node) join(room string, o JoinOptions) Joined {
	n.t.Helper()
	j, err := n.Join(ctxOf(n.t), room, o)
	if err != nil {
		n.t.Fatal(err)
	}
	return j
}

func TestLiveMessages(t *testing.T) {
	a := relayAddr(t)
	ctx := ctxOf(t)
	x, y := start(t, Config{Relays: []Address{a}, Attributes: map[string]any{"name": "x", "n": -5, "b": []byte{1}}}), start(t, Config{Relays: []Address{a}})
	room := roomName()
	if j := x.join(room, JoinOptions{Watch: true}); j.Members != 1 || j.Version != 1 {
		t.Errorf("%+v", j)
	}
	if r, err := x.Publish(ctx, room, Data, []byte("alone")); err != nil {
		t.Fatal(err)
	} else if o, _ := r.Wait(ctx); o != Rejected || r.Code != NoMembers {
		t.Errorf("%v %v", o, r.Code)
	}
	y.join(room, JoinOptions{})
	p := x.want(EventPresence)
	if len(p.New) != 1 || p.New[0].Key != y.Key() {
		t.Errorf("%+v", p)
	}
	ms, v, err := x.Members(ctx, room)
	if err != nil || v != 2 || len(ms) != 2 || ms[0].Key != x.Key() || ms[0].Attributes["name"] != "x" || ms[0].Attributes["n"] != NegInt(4) {
		t.Errorf("%+v %v %v", ms, v, err)
	}
	big := make([]byte, 900_000)
	rand.Read(big)
	for _, m := range []struct {
		p []byte
		c Class
	}{{[]byte("hello"), Data}, {nil, Urgent}, {big, Bulk}, {bytes.Repeat([]byte{7}, 17383), 3}, {bytes.Repeat([]byte{7}, 17384), 3}, {bytes.Repeat([]byte{8}, 1<<20), 6}} {
		r, err := x.Publish(ctx, room, m.c, m.p)
		if err != nil {
			t.Fatal(err)
		}
		e := y.want(EventMessage)
		if !bytes.Equal(e.Payload, m.p) || e.Class != m.c || e.Sender != x.Key() || e.Mode != 0 || e.Room != room {
			t.Errorf("%+v", e)
		}
		if err := x.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		if o, _ := r.Wait(ctx); o != Accepted {
			t.Errorf("%v", o)
		}
	}
	if _, err := x.Publish(ctx, room, Data, make([]byte, 1<<20+1)); err == nil {
		t.Error("too large is taken")
	}
	x.Send(ctx, y.Key(), Interactive, []byte("to you"))
	if e := y.want(EventMessage); e.Mode != 1 || string(e.Payload) != "to you" {
		t.Errorf("%+v", e)
	}
	x.Send(ctx, x.Key(), Data, []byte("to me"))
	if e := x.want(EventMessage); e.Mode != 1 || string(e.Payload) != "to me" {
		t.Errorf("%+v", e)
	}
	y.Anycast(ctx, room, Data, []byte("any"))
	if e := x.want(EventMessage); e.Mode != 2 || e.Room != room {
		t.Errorf("%+v", e)
	}
	r, _ := x.Send(ctx, Key{1}, Data, []byte("nobody"))
	if o, _ := r.Wait(ctx); o != Rejected || r.Code != NoSuchPeer {
		t.Errorf("%v %v", o, r.Code)
	}
	if _, err := x.Ping(ctx); err != nil {
		t.Error(err)
	}
	st, err := x.Stats(ctx)
	if err != nil || st["received_messages"] == nil {
		t.Errorf("%v %v", st, err)
	}
	t.Log(st)
	if err := y.Leave(ctx, room); err != nil {
		t.Error(err)
	}
	p = x.want(EventPresence)
	if len(p.Gone) != 1 || p.Gone[0] != y.Key() {
		t.Errorf("%+v", p)
	}
	if _, _, err := y.Members(ctx, room); err == nil {
		t.Error("members without being in the room")
	}
	owned := "@" + x.Key().String() + "/x"
	x.join(owned, JoinOptions{})
	if _, err := y.Join(ctx, owned, JoinOptions{}); err == nil || err.(*CodeError).Code != CapabilityRequired {
		t.Error(err)
	}
}

// Many messages of all classes at once: order inside a class, ordinals right.
func TestLiveOrderAndOrdinals(t *testing.T) {
	a := relayAddr(t)
	ctx := ctxOf(t)
	x, y := start(t, Config{Relays: []Address{a}}), start(t, Config{Relays: []Address{a}})
	room := roomName()
	y.join(room, JoinOptions{})
	var rejects []*Receipt
	const n = 1200
	for i := 0; i < n; i++ {
		size := 10
		if i%40 == 0 {
			size = 60_000
		}
		p := make([]byte, size)
		copy(p, fmt.Sprintf("%06d", i))
		if _, err := x.Publish(ctx, room, Class(i%7), p); err != nil {
			t.Fatal(err)
		}
		if i%50 == 0 {
			r, _ := x.Send(ctx, Key{9, byte(i)}, Class(i%7), make([]byte, size))
			rejects = append(rejects, r)
		}
	}
	if err := x.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	for _, r := range rejects {
		if o, _ := r.Wait(ctx); o != Rejected || r.Code != NoSuchPeer && r.Code != RateExceeded {
			t.Errorf("%v %v", o, r.Code)
		}
	}
	last := [7]int{}
	for i := 0; i < n; i++ {
		e := y.want(EventMessage)
		var k int
		fmt.Sscanf(string(e.Payload[:6]), "%06d", &k)
		if k%7 != int(e.Class) || k < last[e.Class] {
			t.Fatalf("%d after %d in class %d", k, last[e.Class], e.Class)
		}
		last[e.Class] = k
	}
}

func TestLiveRecordsRekey(t *testing.T) {
	a := relayAddr(t)
	ctx := ctxOf(t)
	x := start(t, Config{Relays: []Address{a}})
	for i := 0; i < 2500; i++ { // one record each way per ping
		if _, err := x.Ping(ctx); err != nil {
			t.Fatal(i, err)
		}
	}
}

func TestLiveRequests(t *testing.T) {
	a := relayAddr(t)
	ctx := ctxOf(t)
	room := roomName()
	x := start(t, Config{Relays: []Address{a}})
	y := start(t, Config{Relays: []Address{a}, Serve: func(r Request) ([]byte, error) {
		if string(r.Body) == "no" {
			return nil, fmt.Errorf("not so")
		}
		return append([]byte("pong "), r.Body...), nil
	}})
	y.join(room, JoinOptions{})
	for name, f := range map[string]func(b []byte) ([]byte, error){
		"send":     func(b []byte) ([]byte, error) { return x.Request(ctx, y.Key(), Data, b) },
		"any":      func(b []byte) ([]byte, error) { return x.RequestAny(ctx, room, Data, b) },
		"reliable": func(b []byte) ([]byte, error) { return x.RequestReliable(ctx, y.Key(), Data, b) },
	} {
		if b, err := f([]byte("ping")); err != nil || string(b) != "pong ping" {
			t.Errorf("%s: %q %v", name, b, err)
		}
		if _, err := f([]byte("no")); err == nil || !strings.Contains(err.Error(), "not so") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := y.Request(ctx, x.Key(), Data, nil); err == nil {
		t.Error("x serves nothing")
	}
	if _, err := x.Request(ctx, Key{3}, Data, nil); err == nil {
		t.Error("nobody answered")
	}
}

func TestLiveReliable(t *testing.T) {
	a := relayAddr(t)
	ctx := ctxOf(t)
	x, y := start(t, Config{Relays: []Address{a}}), start(t, Config{Relays: []Address{a}})
	no := start(t, Config{Relays: []Address{a}, NoReliable: true})
	const n = 500
	var rs []*Receipt
	for i := 0; i < n; i++ {
		r, err := x.SendReliable(ctx, y.Key(), Data, []byte(fmt.Sprint(i)), 0)
		if err != nil {
			t.Fatal(err)
		}
		rs = append(rs, r)
	}
	for i := 0; i < n; i++ {
		if e := y.want(EventMessage); string(e.Payload) != fmt.Sprint(i) || !e.Reliable {
			t.Fatalf("%d: %s", i, e.Payload)
		}
	}
	for _, r := range rs {
		if o, _ := r.Wait(ctx); o != Delivered {
			t.Errorf("%v", o)
		}
	}
	r, _ := x.SendReliable(ctx, no.Key(), Data, []byte("x"), 0)
	if o, _ := r.Wait(ctx); o != Refused {
		t.Errorf("%v", o)
	}
	r, _ = x.SendReliable(ctx, Key{5}, Data, []byte("x"), 500*time.Millisecond)
	if o, _ := r.Wait(ctx); o != Expired {
		t.Errorf("%v", o)
	}
}

func TestLiveSameKey(t *testing.T) {
	a := relayAddr(t)
	id, _ := GenerateIdentity()
	x := start(t, Config{Relays: []Address{a}, Identity: id})
	y := start(t, Config{Relays: []Address{a}, Identity: id})
	if e := x.want(EventEnded); e.Err == nil || !strings.Contains(e.Err.Error(), "replaced") {
		t.Errorf("%v", e.Err)
	}
	if _, err := y.Ping(ctxOf(t)); err != nil {
		t.Error(err)
	}
}

func TestLivePause(t *testing.T) {
	a := relayAddr(t)
	ctx := ctxOf(t)
	x := start(t, Config{Relays: []Address{a}})
	y, err := New(Config{Relays: []Address{a}}) // whose application does not read
	if err != nil {
		t.Fatal(err)
	}
	<-y.Events() // connected
	go func() {
		for i := 0; i < 60; i++ {
			if r, err := x.Send(ctx, y.Key(), Bulk, append([]byte{byte(i)}, make([]byte, 400_000)...)); err != nil {
				t.Error(err)
			} else {
				go func() {
					if o, _ := r.Wait(ctx); o != Accepted {
						t.Error(o, r.Code)
					}
				}()
			}
			x.Flush(ctx) // at most 1 MiB without a verdict: more could be under way when PAUSE comes
		}
		x.Flush(ctx)
	}()
	time.Sleep(2 * time.Second)
	if _, err := y.Ping(ctx); err != nil {
		t.Error(err)
	}
	y.mu.Lock()
	if !y.s.paused[Bulk] {
		t.Error("the class is not paused")
	}
	t.Log("bytes in the inbox:", y.evBytes[Bulk])
	y.mu.Unlock()
	for i := 0; i < 60; {
		e := <-y.Events()
		if e.Type == EventMessage {
			if e.Payload[0] != byte(i) {
				t.Fatalf("%d, not %d", e.Payload[0], i)
			}
			i++
		} else if e.Type == EventGap {
			t.Fatalf("%+v", e)
		}
	}
	go func() {
		for range y.Events() {
		}
	}()
	y.Close(ctx)
}

// ---- with the reference command -------------------------------------------------

type proc struct {
	cmd *exec.Cmd
	out *bufio.Reader
	err *bufio.Reader
}

func run(t *testing.T, stdin string, args ...string) *proc {
	t.Helper()
	cmd := exec.Command(command(t), args...)
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	o, _ := cmd.StdoutPipe()
	e, _ := cmd.StderrPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return &proc{cmd, bufio.NewReader(o), bufio.NewReader(e)}
}

func (p *proc) line(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	ch := make(chan string, 1)
	go func() { s, _ := r.ReadString('\n'); ch <- s }()
	select {
	case s := <-ch:
		return strings.TrimSpace(s)
	case <-time.After(20 * time.Second):
		t.Fatal("the command wrote nothing")
	}
	return ""
}

func TestLiveCommands(t *testing.T) {
	a := relayAddr(t)
	ctx := ctxOf(t)
	cmd := command(t)
	_ = cmd
	x := start(t, Config{Relays: []Address{a}})
	room := roomName()
	// sub
	p := run(t, "", "sub", room, "--json", "--count", "3", "--relay", a.String())
	t.Log(p.line(t, p.err))
	big := bytes.Repeat([]byte("0123456789"), 90_000)
	for _, m := range [][]byte{[]byte("one"), big, {0xff}} {
		if _, err := x.Publish(ctx, room, Data, m); err != nil {
			t.Fatal(err)
		}
	}
	for i, size := range []int{3, 900_000, 1} {
		var v struct {
			Sender, Payload string
			Size            int
		}
		l := p.line(t, p.out)
		if err := json.Unmarshal([]byte(l), &v); err != nil || v.Size != size || v.Sender != x.Key().String() {
			t.Errorf("%d: %.200s %v", i, l, err)
		}
	}
	// pub
	x.join(room, JoinOptions{})
	p = run(t, "line one\nline two\n", "pub", room, "--lines", "--class", "urgent", "--relay", a.String())
	for _, w := range []string{"line one", "line two"} {
		if e := x.want(EventMessage); string(e.Payload) != w || e.Class != Urgent {
			t.Errorf("%+v", e)
		}
	}
	p = run(t, string(big), "pub", room, "--any", "--size", "1000000", "--relay", a.String())
	if e := x.want(EventMessage); !bytes.Equal(e.Payload, big) || e.Mode != 2 {
		t.Errorf("mode %d, %d bytes", e.Mode, len(e.Payload))
	}
	// send: may be reliable
	p = run(t, "to the go node", "send", x.Key().String(), "--relay", a.String())
	e := x.want(EventMessage)
	if string(e.Payload) != "to the go node" {
		t.Errorf("%+v", e)
	}
	t.Log("send is reliable:", e.Reliable)
	if err := p.cmd.Wait(); err != nil {
		t.Error("send:", err)
	}
	// recv: plain and reliable
	p = run(t, "", "recv", "--count", "2", "--json", "--relay", a.String())
	l := p.line(t, p.err)
	f := strings.Fields(l)
	i := slices.Index(f, "as")
	peer, err := ParseKey(f[i+1])
	if err != nil {
		t.Fatal(l)
	}
	if _, err := x.Send(ctx, peer, Data, []byte("plain")); err != nil {
		t.Fatal(err)
	}
	t.Log(p.line(t, p.out))
	r, err := x.SendReliable(ctx, peer, Data, []byte("sure"), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(p.line(t, p.out))
	o, _ := r.Wait(ctx)
	t.Log("reliable to recv:", o, r.Code)
	if o != Delivered {
		t.Error(o)
	}
	// who
	p = run(t, "", "who", room, "--json", "--relay", a.String())
	if l := p.line(t, p.out); !strings.Contains(l, x.Key().String()) {
		t.Error(l)
	}
}

// ownRelay starts a relay of its own.
func ownRelay(t *testing.T, listen, key string, more ...string) (Address, *exec.Cmd) {
	t.Helper()
	p := run(t, "", append([]string{"serve", "--listen", listen, "--json", "--key", key}, more...)...)
	l := p.line(t, p.out)
	i := strings.Index(l, "ac://")
	if i < 0 {
		t.Fatal(l)
	}
	s := l[i:]
	s = s[:strings.IndexByte(s, '"')]
	a, err := ParseAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return a, p.cmd
}

func TestLiveRestart(t *testing.T) {
	command(t)
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			ctx := ctxOf(t)
			key := filepath.Join(t.TempDir(), "k")
			a, cmd := ownRelay(t, "127.0.0.1:0", key)
			x, y := start(t, Config{Relays: []Address{a}}), start(t, Config{Relays: []Address{a}})
			room := roomName()
			y.join(room, JoinOptions{})
			x.join(room, JoinOptions{})
			var rs []*Receipt
			const n = 300
			restarted := make(chan bool)
			go func() {
				defer close(restarted)
				time.Sleep(100 * time.Millisecond)
				cmd.Process.Signal(sig)
				cmd.Process.Wait()
				time.Sleep(300 * time.Millisecond)
				ownRelay(t, a.Addr, key)
			}()
			for i := 0; i < n; i++ {
				r, err := x.SendReliable(ctx, y.Key(), Data, append([]byte(fmt.Sprintf("%06d", i)), make([]byte, 3000)...), 0)
				if err != nil {
					t.Fatal(err)
				}
				rs = append(rs, r)
				if i%10 == 0 {
					time.Sleep(10 * time.Millisecond)
				}
			}
			for i := 0; i < n; i++ {
				if e := y.want(EventMessage); string(e.Payload[:6]) != fmt.Sprintf("%06d", i) {
					t.Fatalf("%d: %.6s", i, e.Payload)
				}
			}
			for _, r := range rs {
				if o, err := r.Wait(ctx); o != Delivered {
					t.Fatalf("%v %v", o, err)
				}
			}
			<-restarted
			// rooms are joined again
			x.want(EventDisconnected)
			d := time.Now().Add(10 * time.Second)
			for {
				r, err := x.Publish(ctx, room, Data, []byte("again"))
				if err != nil {
					t.Fatal(err)
				}
				x.Flush(ctx)
				if o, _ := r.Wait(ctx); o == Accepted {
					break
				} else if time.Now().After(d) {
					t.Fatal(o, r.Code)
				}
				time.Sleep(100 * time.Millisecond)
			}
			if e := y.want(EventMessage); string(e.Payload) != "again" {
				t.Errorf("%+v", e)
			}
		})
	}
}

func TestLiveContracts(t *testing.T) {
	command(t)
	ctx := ctxOf(t)
	a, _ := ownRelay(t, filepath.Join(t.TempDir(), "s"), filepath.Join(t.TempDir(), "k"),
		"--contract", "bulk:200kB/s:40kB:100ms", "--room-contract", "tight=bulk:20kB/s:10kB:100ms")
	x, y := start(t, Config{Relays: []Address{a}}), start(t, Config{Relays: []Address{a}})
	y.join("tight", JoinOptions{})
	y.join("wide", JoinOptions{})
	if _, err := x.Publish(ctx, "wide", Bulk, make([]byte, 60_000)); err == nil {
		t.Error("longer than the burst and taken")
	}
	began := time.Now()
	var rs []*Receipt
	for i := 0; i < 40; i++ {
		r, err := x.Publish(ctx, "wide", Bulk, make([]byte, 10_000))
		if err != nil {
			t.Fatal(err)
		}
		rs = append(rs, r)
	}
	r, err := x.Publish(ctx, "wide", Urgent, []byte("first"))
	if err != nil {
		t.Fatal(err)
	}
	rs = append(rs, r)
	urgentAt := -1
	for i := 0; i < 41; i++ {
		if e := y.want(EventMessage); e.Class == Urgent {
			urgentAt = i
		}
	}
	took := time.Since(began)
	t.Log("400 kB at 200 kB/s took", took, "urgent came as", urgentAt)
	if took < 1500*time.Millisecond || took > 4*time.Second || urgentAt > 15 {
		t.Error("not shaped as the contract says")
	}
	x.Flush(ctx)
	for _, r := range rs {
		if o, _ := r.Wait(ctx); o != Accepted {
			t.Errorf("%v %v", o, r.Code)
		}
	}
	// the contract of a room that is not joined comes with CONTRACT
	r, _ = x.Publish(ctx, "tight", Bulk, make([]byte, 1000))
	x.Flush(ctx)
	for e := x.want(EventContract); e.Room != "tight"; e = x.want(EventContract) {
	}
	began = time.Now()
	rs = []*Receipt{r}
	for i := 0; i < 40; i++ {
		r, err := x.Publish(ctx, "tight", Bulk, make([]byte, 1000))
		if err != nil {
			t.Fatal(err)
		}
		rs = append(rs, r)
	}
	for i := 0; i < 41; i++ {
		y.want(EventMessage)
	}
	t.Log("40 kB at 20 kB/s took", time.Since(began))
	x.Flush(ctx)
	for _, r := range rs {
		if o, _ := r.Wait(ctx); o != Accepted {
			t.Errorf("%v %v", o, r.Code)
		}
	}
}

// The receiver is replaced by another process with the same key, and takes what the first did not.
func TestLiveReliableNewReceiver(t *testing.T) {
	a := relayAddr(t)
	ctx := ctxOf(t)
	id, _ := GenerateIdentity()
	x := start(t, Config{Relays: []Address{a}})
	first, err := New(Config{Relays: []Address{a}, Identity: id})
	if err != nil {
		t.Fatal(err)
	}
	first.WaitConnected(ctx)
	var rs []*Receipt
	for i := 0; i < 60; i++ {
		r, err := x.SendReliable(ctx, id.Key, Data, []byte(fmt.Sprintf("%03d", i)), 0)
		if err != nil {
			t.Fatal(err)
		}
		rs = append(rs, r)
	}
	last := -1
	for last < 19 { // takes 20, and holds the others
		if e := <-first.Events(); e.Type == EventMessage {
			fmt.Sscanf(string(e.Payload), "%d", &last)
		}
	}
	time.Sleep(300 * time.Millisecond)
	for i, r := range rs {
		select {
		case <-r.Done:
			if i > 19 || r.Outcome != Delivered {
				t.Errorf("%d: %s before it was taken", i, r.Outcome)
			}
		default:
			if i < 19 { // the pump may not have seen yet that 19 was taken
				t.Errorf("%d is not acknowledged", i)
			}
		}
	}
	second := start(t, Config{Relays: []Address{a}, Identity: id})
	for want := 20; want < 60; want++ {
		var got int
		fmt.Sscanf(string(second.want(EventMessage).Payload), "%d", &got)
		if got != want {
			t.Fatalf("%d, not %d", got, want)
		}
	}
	for i, r := range rs {
		if o, err := r.Wait(ctx); o != Delivered {
			t.Errorf("%d: %v %v", i, o, err)
		}
	}
	go func() {
		for range first.Events() {
		}
	}()
	first.Close(ctx)
}

// The reference receiver takes reliable messages of this client across a killed relay.
func TestLiveRestartWithRecv(t *testing.T) {
	command(t)
	ctx := ctxOf(t)
	key := filepath.Join(t.TempDir(), "k")
	a, cmd := ownRelay(t, "127.0.0.1:0", key)
	const n = 100
	p := run(t, "", "recv", "--count", fmt.Sprint(n), "--json", "--relay", a.String())
	f := strings.Fields(p.line(t, p.err))
	go func() {
		for {
			if _, err := p.err.ReadString('\n'); err != nil {
				return
			}
		}
	}()
	peer, err := ParseKey(f[slices.Index(f, "as")+1])
	if err != nil {
		t.Fatal(f)
	}
	x := start(t, Config{Relays: []Address{a}})
	var rs []*Receipt
	for i := 0; i < n; i++ {
		if i == 50 {
			cmd.Process.Kill()
			cmd.Process.Wait()
			ownRelay(t, a.Addr, key)
		}
		r, err := x.SendReliable(ctx, peer, Data, []byte(fmt.Sprintf("%03d", i)), 0)
		if err != nil {
			t.Fatal(err)
		}
		rs = append(rs, r)
		time.Sleep(2 * time.Millisecond)
	}
	for i := 0; i < n; i++ {
		var v struct{ Payload string }
		if l := p.line(t, p.out); json.Unmarshal([]byte(l), &v) != nil || v.Payload != fmt.Sprintf("%03d", i) {
			t.Fatalf("%d: %s", i, l)
		}
	}
	// recv ends after its last message: the ack of that one may not leave any more
	for i, r := range rs[:n-1] {
		if o, err := r.Wait(ctx); o != Delivered {
			t.Errorf("%d: %v %v", i, o, err)
		}
	}
	c, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	o, err := rs[n-1].Wait(c)
	t.Log("the last one:", o, err)
}
