// Command acclient steers a client by lines of JSON on standard input and
// writes what happens as lines of JSON to standard output. See README.md.
package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	ac "awesomeconnect.example/acgo"
)

type op struct {
	Op         string         `json:"op"`
	ID         any            `json:"id"`
	Relay      string         `json:"relay"`
	Relays     []string       `json:"relays"`
	Seed       string         `json:"seed"`
	Attributes map[string]any `json:"attributes"`
	Once       bool           `json:"once"`
	NoReliable bool           `json:"no_reliable"`
	Echo       bool           `json:"echo"`
	Room       string         `json:"room"`
	Watch      bool           `json:"watch"`
	Observe    bool           `json:"observe"`
	Payload    []byte         `json:"payload"`
	Class      *ac.Class      `json:"class"`
	Peer       string         `json:"peer"`
	Reliable   bool           `json:"reliable"`
	ExpiresMS  int64          `json:"expires_ms"`
	TimeoutMS  int64          `json:"timeout_ms"`
}

type object = map[string]any

type driver struct {
	mu     sync.Mutex
	naming sync.Mutex
	out    *json.Encoder
	client *ac.Client
	pumped chan struct{}
	ids    map[uint64]any
}

func (d *driver) say(event string, o object) {
	if o == nil {
		o = object{}
	}
	o["event"] = event
	d.mu.Lock()
	defer d.mu.Unlock()
	d.out.Encode(o)
}

func (d *driver) fail(o op, err error) {
	e := object{"op": o.Op, "error": err.Error()}
	var ce *ac.CodeError
	if errors.As(err, &ce) {
		e["code"] = uint64(ce.Code)
		e["name"] = ce.Code.String()
	}
	if o.ID != nil {
		e["id"] = o.ID
	}
	if o.Room != "" {
		e["room"] = o.Room
	}
	d.say("error", e)
}

func (d *driver) events(c *ac.Client) {
	defer close(d.pumped)
	for e := range c.Events() {
		switch e.Type {
		case ac.EventMessage:
			p := e.Payload
			if p == nil {
				p = []byte{}
			}
			d.say("message", object{"room": null(e.Room), "sender": e.Sender.String(), "class": e.Class,
				"mode": [...]string{"broadcast", "unicast", "anycast"}[e.Mode], "payload": p, "reliable": e.Reliable})
		case ac.EventConnected:
			d.say("connected", object{"relay": e.Relay.String(), "key": c.Key().String(), "epoch": hex.EncodeToString(e.Epoch[:]),
				"new_epoch": e.NewEpoch, "payload_bytes": e.Limits.PayloadBytes})
		case ac.EventDisconnected:
			d.say("disconnected", object{"error": fmt.Sprint(e.Err)})
		case ac.EventJoined:
			d.say("joined", object{"room": e.Room, "version": e.Version, "members": e.MemberCount, "messages": e.MessageCount})
		case ac.EventLeft:
			d.say("left", object{"room": e.Room, "code": uint64(e.Code), "name": e.Code.String()})
		case ac.EventPresence:
			gone, joined := []string{}, []string{}
			for _, k := range e.Gone {
				gone = append(gone, k.String())
			}
			for _, m := range e.New {
				joined = append(joined, m.Key.String())
			}
			d.say("presence", object{"room": e.Room, "version": e.Version, "left": gone, "joined": joined})
		case ac.EventGap:
			o := object{"room": null(e.Room), "class": e.Class, "count": e.Count, "bytes": e.Bytes, "code": uint64(e.Code), "local": e.Local}
			if e.Sender != (ac.Key{}) {
				o["sender"] = e.Sender.String()
			}
			d.say("gap", o)
		case ac.EventRejected:
			d.say("rejected", object{"id": d.id(e.Message), "code": uint64(e.Code), "name": e.Code.String(), "retry_after_ms": e.RetryAfterMS, "late": e.Late})
		case ac.EventDelivered, ac.EventExpired, ac.EventUnknown:
			d.say(string(e.Type), object{"id": d.id(e.Message)})
		case ac.EventGoaway:
			d.say("goaway", object{"code": uint64(e.Code), "name": e.Code.String(), "window_ms": e.WindowMS})
		case ac.EventContract:
			d.say("contract", object{"room": null(e.Room), "code": uint64(e.Code), "contracts": len(e.Contracts)})
		case ac.EventEnded:
			o := object{}
			if e.Err != nil {
				o["error"] = e.Err.Error()
			}
			d.say("closed", o)
		}
	}
}

func null(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// id is the id that the driver's user gave to a message, or its number.
func (d *driver) id(n uint64) any {
	d.naming.Lock()
	defer d.naming.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if v, ok := d.ids[n]; ok {
		return v
	}
	return n
}

func (d *driver) do(o op) error {
	timeout := 30 * time.Second
	if o.TimeoutMS > 0 {
		timeout = time.Duration(o.TimeoutMS) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	class := ac.Data
	if o.Class != nil {
		class = *o.Class
	}
	if o.Op == "connect" {
		return d.connect(ctx, o)
	}
	c := d.client
	if c == nil {
		return errors.New("connect first")
	}
	var peer ac.Key
	var err error
	if o.Peer != "" {
		if peer, err = ac.ParseKey(o.Peer); err != nil {
			return err
		}
	}
	var r *ac.Receipt
	switch o.Op {
	case "publish", "send", "anycast":
		d.naming.Lock() // no event about the message before its id is known
		defer d.naming.Unlock()
		switch {
		case o.Op == "publish":
			r, err = c.Publish(ctx, o.Room, class, o.Payload)
		case o.Op == "anycast":
			r, err = c.Anycast(ctx, o.Room, class, o.Payload)
		case o.Peer == "":
			err = errors.New("send needs a peer")
		case o.Reliable:
			r, err = c.SendReliable(ctx, peer, class, o.Payload, time.Duration(o.ExpiresMS)*time.Millisecond)
		default:
			r, err = c.Send(ctx, peer, class, o.Payload)
		}
		if err != nil {
			return err
		}
		d.mu.Lock()
		if o.ID != nil {
			d.ids[r.ID] = o.ID
		}
		d.mu.Unlock()
		return nil
	case "join":
		_, err = c.Join(ctx, o.Room, ac.JoinOptions{Watch: o.Watch, Observe: o.Observe})
	case "leave":
		err = c.Leave(ctx, o.Room)
	case "flush":
		if err = c.Flush(ctx); err == nil {
			d.say("flushed", object{"id": o.ID})
		}
	case "ping":
		var rtt time.Duration
		if rtt, err = c.Ping(ctx); err == nil {
			d.say("pong", object{"id": o.ID, "rtt_us": rtt.Microseconds()})
		}
	case "stats":
		var m map[string]any
		if m, err = c.Stats(ctx); err == nil {
			d.say("stats", object{"id": o.ID, "stats": m})
		}
	case "members":
		var ms []ac.Member
		var v uint64
		if ms, v, err = c.Members(ctx, o.Room); err == nil {
			list := []object{}
			for _, m := range ms {
				list = append(list, object{"key": m.Key.String(), "joined": m.Joined, "attributes": m.Attributes})
			}
			d.say("members", object{"id": o.ID, "room": o.Room, "version": v, "members": list})
		}
	case "request":
		var b []byte
		switch {
		case o.Peer == "":
			b, err = c.RequestAny(ctx, o.Room, class, o.Payload)
		case o.Reliable:
			b, err = c.RequestReliable(ctx, peer, class, o.Payload)
		default:
			b, err = c.Request(ctx, peer, class, o.Payload)
		}
		if err == nil {
			d.say("response", object{"id": o.ID, "payload": b})
		}
	case "close":
		err = c.Close(ctx)
		<-d.pumped
		d.client = nil
	default:
		err = fmt.Errorf("unknown op %q", o.Op)
	}
	return err
}

func (d *driver) connect(ctx context.Context, o op) error {
	if d.client != nil {
		return errors.New("connected already")
	}
	cfg := ac.Config{NoReconnect: o.Once, NoReliable: o.NoReliable, Attributes: map[string]any{}}
	for k, v := range o.Attributes {
		if f, ok := v.(float64); ok {
			v = int64(f)
		}
		cfg.Attributes[k] = v
	}
	if o.Echo {
		cfg.Serve = func(r ac.Request) ([]byte, error) { return r.Body, nil }
	}
	if o.Relay != "" {
		o.Relays = append([]string{o.Relay}, o.Relays...)
	}
	for _, s := range o.Relays {
		a, err := ac.ParseAddress(s)
		if err != nil {
			return err
		}
		cfg.Relays = append(cfg.Relays, a)
	}
	if o.Seed != "" {
		seed, err := hex.DecodeString(o.Seed)
		if err != nil {
			return err
		}
		if cfg.Identity, err = ac.NewIdentity(seed); err != nil {
			return err
		}
	}
	c, err := ac.New(cfg)
	if err != nil {
		return err
	}
	d.client, d.pumped, d.ids = c, make(chan struct{}), map[uint64]any{}
	go d.events(c)
	if err := c.WaitConnected(ctx); err != nil {
		end, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		c.Close(end)
		<-d.pumped
		d.client = nil
		return err
	}
	return nil
}

func main() {
	w := bufio.NewWriter(os.Stdout)
	d := &driver{out: json.NewEncoder(flusher{w})}
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(make([]byte, 1<<16), 64<<20)
	for in.Scan() {
		if len(in.Bytes()) == 0 {
			continue
		}
		var o op
		if err := json.Unmarshal(in.Bytes(), &o); err != nil {
			d.fail(o, err)
			continue
		}
		if err := d.do(o); err != nil {
			d.fail(o, err)
		}
	}
	if d.client != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		d.client.Close(ctx)
		<-d.pumped
	}
}

type flusher struct{ w *bufio.Writer }

func (f flusher) Write(b []byte) (int, error) {
	n, err := f.w.Write(b)
	if err == nil {
		err = f.w.Flush()
	}
	return n, err
}
