package ac

import "math/big"

// Scheduler decides when messages of one contract may leave (shaping.md), after 802.1Qcr.
type Scheduler struct {
	cir, cbs, stall uint64
	empty           *big.Int // bucket_empty, × CIR
	group           *SchedulerGroup
}

// SchedulerGroup keeps the order of the messages of its schedulers. MaxResidence
// is in ns; a negative one means that messages are held for ever.
type SchedulerGroup struct {
	MaxResidence int64
	eligibility  int64
}

// Verdict is the decision about one message.
type Verdict struct {
	Eligible   int64 // ns
	RetryAfter int64 // ns; set when discarded
	Discarded  bool
	TooLarge   bool
}

var bigGiga = big.NewInt(1e9)

func bigU(n uint64) *big.Int { return new(big.Int).SetUint64(n) }

// NewScheduler makes a scheduler whose bucket is full now.
func NewScheduler(cir, cbs, stallNS uint64, g *SchedulerGroup, now int64) *Scheduler {
	s := &Scheduler{cir: cir, cbs: cbs, stall: stallNS, group: g}
	s.empty = new(big.Int).Mul(big.NewInt(now), bigU(cir))
	s.empty.Sub(s.empty, s.capacity(cir, cbs))
	return s
}

func (s *Scheduler) capacity(cir, cbs uint64) *big.Int {
	c := new(big.Int).Mul(bigU(cbs), bigGiga)
	return c.Add(c, new(big.Int).Mul(bigU(cir), bigU(s.stall)))
}

// step computes the verdict and what would change. since is the arrival that
// max_residence counts from.
func (s *Scheduler) step(arrival, since int64, size uint64) (v Verdict, empty *big.Int) {
	if size > s.cbs {
		return Verdict{TooLarge: true}, nil
	}
	earliest := max(arrival, s.group.eligibility)
	cir := bigU(s.cir)
	recovered := new(big.Int).Add(s.empty, new(big.Int).Mul(bigU(size), bigGiga))
	full := new(big.Int).Add(s.empty, s.capacity(s.cir, s.cbs))
	exact := new(big.Int).Mul(big.NewInt(earliest), cir)
	if recovered.Cmp(exact) > 0 {
		exact.Set(recovered)
	}
	q, r := new(big.Int).DivMod(exact, cir, new(big.Int)) // Euclidean: rounds down
	v.Eligible = q.Int64()
	if r.Sign() > 0 {
		v.Eligible++
	}
	if m := s.group.MaxResidence; m >= 0 && v.Eligible > since+m {
		return Verdict{Discarded: true, RetryAfter: v.Eligible - m - since}, nil
	}
	if exact.Cmp(full) < 0 {
		return v, recovered
	}
	return v, recovered.Add(recovered, exact).Sub(recovered, full)
}

// Process decides about one message that passes the schedulers in this order.
// Nothing changes unless all of them let it pass.
func Process(through []*Scheduler, arrival int64, size uint64) Verdict {
	var out Verdict
	at := arrival
	empties := make([]*big.Int, len(through))
	times := make([]int64, len(through))
	for i, s := range through {
		v, e := s.step(at, arrival, size)
		switch {
		case v.TooLarge:
			return v
		case v.Discarded:
			out.Discarded = true
			out.RetryAfter = max(out.RetryAfter, v.RetryAfter)
			// The next one is asked as if this one had let it pass then.
			at = max(at, arrival+max(s.group.MaxResidence, 0)+v.RetryAfter)
		default:
			at = v.Eligible
			empties[i], times[i] = e, v.Eligible
		}
	}
	if out.Discarded {
		return out
	}
	for i, s := range through {
		s.empty, s.group.eligibility = empties[i], times[i]
	}
	out.Eligible = at
	return out
}

// SetRate goes on with another contract from now on.
func (s *Scheduler) SetRate(now int64, cir, cbs uint64) {
	since := big.NewInt(max(now, s.group.eligibility))
	level := new(big.Int).Mul(since, bigU(s.cir))
	level.Sub(level, s.empty)
	if c := s.capacity(s.cir, s.cbs); level.Cmp(c) > 0 {
		level = c
	}
	if c := s.capacity(cir, cbs); level.Cmp(c) > 0 {
		level = c
	}
	s.cir, s.cbs = cir, cbs
	s.empty = new(big.Int).Mul(since, bigU(cir))
	s.empty.Sub(s.empty, level)
}
