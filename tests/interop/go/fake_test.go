package ac

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// fake is a relay that says what the test wants.
type fake struct {
	t    *testing.T
	l    net.Listener
	id   *Identity
	addr Address
}

func newFake(t *testing.T) *fake {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	id, _ := GenerateIdentity()
	return &fake{t, l, id, Address{id.Key, "tcp", l.Addr().String()}}
}

// accept takes one connection up to HELLO.
func (f *fake) accept() (*raw, []any) {
	conn, err := f.l.Accept()
	if err != nil {
		f.t.Error(err)
		return nil, nil
	}
	f.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	hs, _ := newRelayHandshake(f.id, nil)
	b := make([]byte, act1Size)
	io.ReadFull(conn, b)
	act2, err := hs.act1(b)
	if err != nil {
		f.t.Error(err)
		return nil, nil
	}
	conn.Write(act2)
	b = make([]byte, act3Size)
	io.ReadFull(conn, b)
	key, k1, k2, err := hs.act3(b)
	if err != nil {
		f.t.Error(err)
		return nil, nil
	}
	r := &raw{t: f.t, id: &Identity{Key: key}, conn: conn, out: newRecordCipher(k2), in: newRecordReader(conn, k1)}
	return r, r.nextRaw()
}

func (r *raw) nextRaw() []any {
	b, err := readFrame(r.in, 1<<21)
	if err != nil {
		return nil
	}
	v, err := DecodeCBOR(b)
	if err != nil {
		r.t.Errorf("client sent %x: %v", b, err)
		return nil
	}
	return v.([]any)
}

func (r *raw) welcome(contracts ...any) {
	if contracts == nil {
		contracts = []any{}
	}
	r.msg(1, 1, make([]byte, 8), map[string]any{"payload_bytes": 65536, "frame_bytes": 66560, "future": 1}, contracts, []any{})
}

// closeCode reads up to CLOSE.
func (r *raw) closeCode() string {
	for {
		m := r.nextRaw()
		if m == nil {
			return "eof"
		}
		if m[0] == uint64(kClose) {
			return fmt.Sprint(m[1])
		}
	}
}

func TestClientAnswersFaults(t *testing.T) {
	del := func(class, size int) []byte {
		return mustCBOR([]any{9, 0, Key{1}, "r", class, 0, make([]byte, size)})
	}
	for _, p := range []struct {
		name string
		do   func(r *raw)
		want string
	}{
		{"early: DELIVER first", func(r *raw) { r.array(del(1, 1)) }, "3"},
		{"early: kind 64 first", func(r *raw) { r.msg(64) }, "3"},
		{"early: WELCOME of revision 2", func(r *raw) { r.msg(1, 2, make([]byte, 8), map[string]any{}, []any{}, []any{}) }, "4"},
		{"early: frame above 65,536", func(r *raw) { r.bytes([]byte{0, 1, 0, 1}) }, "2"},
		{"early: GOAWAY and CLOSE", func(r *raw) { r.msg(22, 9, 0, 0, []any{}); r.msg(26, 9, "") }, "0"},
		{"WELCOME twice", func(r *raw) { r.welcome() }, "3"},
		{"client message", func(r *raw) { r.msg(6, "r", 1, 0, []byte{}) }, "3"},
		{"kind 12", func(r *raw) { r.msg(12) }, "3"},
		{"frame above frame_bytes", func(r *raw) { r.bytes([]byte{0, 1, 4, 1}) }, "2"},
		{"frame of length 0", func(r *raw) { r.bytes(make([]byte, 4)) }, "1"},
		{"bad record", func(r *raw) { r.rec(append([]byte{0, 20}, make([]byte, 20)...)) }, "1"},
		{"CBOR", func(r *raw) { r.hex("83 14 18 00 41 00") }, "1"},
		{"PAUSE null", func(r *raw) { r.msg(18, nil, 1, 1) }, "1"},
		{"REJECT of what was not sent", func(r *raw) { r.msg(16, 1, 1, 32, 0) }, "1"},
		{"contract with 0", func(r *raw) { r.msg(15, nil, 0, []any{[]any{1, 0, 1, 1}}) }, "1"},
		{"contract twice", func(r *raw) { r.msg(15, nil, 0, []any{[]any{1, 1, 1, 1}, []any{1, 1, 1, 1}}) }, "1"},
		{"unicast with a room", func(r *raw) { r.msg(9, 1, Key{}, "r", 1, 0, []byte{}) }, "1"},
		{"fragments too long", func(r *raw) {
			for i := 0; i < 2; i++ {
				r.msg(23, 1, 0, make([]byte, 65536))
			}
		}, "2"},
		{"fragment: class differs", func(r *raw) { r.msg(23, 2, 1, del(1, 1)) }, "1"},
		{"fragment: LEFT inside", func(r *raw) { r.msg(23, 2, 1, mustCBOR([]any{5, "r", 0})) }, "1"},
		{"fragment: abort without one", func(r *raw) { r.msg(23, 2, 2, []byte{}) }, "1"},
		{"fragment: DELIVER between", func(r *raw) { r.msg(23, 1, 0, make([]byte, 1024)); r.array(del(1, 1)) }, "1"},
		{"unknown codes, limits, contents and kinds", func(r *raw) {
			r.msg(70, "x")
			r.msg(5, "r", 999)
			r.msg(9, 0, Key{}, "r", 1, 17, []byte{1})
			r.msg(9, 1, Key{}, nil, 1, 1, []byte{1})
			r.msg(9, 1, Key{}, nil, 1, 2, []byte{0x81, 9})
			r.msg(9, 1, Key{}, nil, 1, 5, []byte{1})
			r.msg(25, map[string]any{"new": []any{1}})
			r.msg(21, []byte("?"))
			r.msg(19, "r", 1)
			r.msg(17, nil, nil, 1, 1, 1, 777)
			r.msg(23, 1, 0, make([]byte, 1024))
			r.msg(23, 1, 2, []byte{})
			r.array(del(1, 1))
			r.msg(26, 0, "")
		}, "0"},
	} {
		t.Run(p.name, func(t *testing.T) {
			f := newFake(t)
			c, err := New(Config{Relays: []Address{f.addr}, NoReconnect: true})
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				for range c.Events() {
				}
			}()
			r, hello := f.accept()
			if hello[0] != uint64(0) || hello[3] != uint64(1) {
				t.Errorf("HELLO %v", hello)
			}
			if !strings.HasPrefix(p.name, "early") {
				r.welcome()
			}
			p.do(r)
			if got := r.closeCode(); got != p.want {
				t.Errorf("CLOSE %s, not %s", got, p.want)
			}
			r.conn.Close()
			select {
			case <-c.Done():
			case <-time.After(7 * time.Second):
				t.Error("the client does not end")
			}
		})
	}
}

// Order in which frames leave: barriers, classes, fragments.
func TestQueueOrder(t *testing.T) {
	f := newFake(t)
	c, err := New(Config{Relays: []Address{f.addr}})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for range c.Events() {
		}
	}()
	r, _ := f.accept()
	c.mu.Lock() // all at once
	for i, class := range []Class{0, 5, 1} {
		c.enqueue(c.newItem(kPublish, "r", Key{}, class, 0, bytes.Repeat([]byte{byte(i)}, 40_000*(1-i%2)+100)))
	}
	c.mu.Unlock()
	go c.Join(ctxOf(t), "a", JoinOptions{})
	time.Sleep(50 * time.Millisecond)
	c.mu.Lock() // WELCOME cannot be taken in the meantime
	r.welcome()
	c.mu.Unlock()
	if err := c.WaitConnected(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	var got []string
	open := [7]bool{}
	for len(got) < 8 {
		m := r.nextRaw()
		if m == nil {
			t.Fatal(got)
		}
		got = append(got, fmt.Sprint(m[0], "/", m[1]))
		if m[0] == uint64(kFragment) {
			open[m[1].(uint64)] = m[2] == uint64(0)
		}
	}
	want := "2/a 6/r 23/1 23/1 23/1 23/0 23/0 23/0"
	s := strings.Join(got[:8], " ")
	t.Log(got)
	if s != want {
		t.Errorf("got %s, want %s", s, want)
	}
	r.conn.Close()
	c.cancel()
}
