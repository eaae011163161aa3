// shaping.md: the scheduler, in nanoseconds and bytes.
const SECOND = 1_000_000_000n
const max = (a: bigint, b: bigint): bigint => (a > b ? a : b)
const min = (a: bigint, b: bigint): bigint => (a < b ? a : b)

export class Group {
  eligibility = 0n
  /** null: messages are held for ever, as at a client. */
  constructor(readonly maxResidence: bigint | null = null) {}
}

export type Verdict =
  | { readonly kind: 'eligible', readonly at: bigint, readonly commit: () => void }
  | { readonly kind: 'discard', readonly at: bigint, readonly retryAfter: bigint }
  | { readonly kind: 'too_large' }

export class Scheduler {
  private bucketEmpty: bigint

  constructor(private cir: bigint, private cbs: bigint, readonly group: Group = new Group(), private readonly stall = 0n, now = 0n) {
    this.bucketEmpty = now * cir - this.capacity
  }

  private get capacity(): bigint { return this.cbs * SECOND + this.cir * this.stall }

  /** Decides without changing anything. `since` is the arrival from which the residence counts, if it is an earlier one. */
  judge(arrival: bigint, length: bigint, since: bigint = arrival): Verdict {
    if (length > this.cbs) return { kind: 'too_large' }
    const { cir, group, bucketEmpty } = this
    const earliest = max(arrival, group.eligibility)
    const recovered = bucketEmpty + length * SECOND
    const full = bucketEmpty + this.capacity
    const exact = max(earliest * cir, recovered)
    const at = (exact + cir - 1n) / cir
    if (group.maxResidence !== null && at > since + group.maxResidence) {
      return { kind: 'discard', at, retryAfter: at - group.maxResidence - since }
    }
    const commit = (): void => {
      this.bucketEmpty = exact < full ? recovered : recovered + exact - full
      group.eligibility = at
    }
    return { kind: 'eligible', at, commit }
  }

  setRate(now: bigint, cir: bigint, cbs: bigint): void {
    const since = max(now, this.group.eligibility)
    const level = min(since * this.cir - this.bucketEmpty, this.capacity)
    this.cir = cir
    this.cbs = cbs
    this.bucketEmpty = since * cir - min(level, this.capacity)
  }

  get burst(): bigint { return this.cbs }

  same(cir: bigint, cbs: bigint): boolean { return this.cir === cir && this.cbs === cbs }
}

/** A message through several schedulers, one behind the other: all change, or none. */
export function judgeAll(schedulers: readonly Scheduler[], arrival: bigint, length: bigint): Verdict {
  let at = arrival
  let retryAfter: bigint | undefined
  const commits: Array<() => void> = []
  for (const scheduler of schedulers) {
    const verdict = scheduler.judge(at, length, arrival)
    if (verdict.kind === 'too_large') return verdict
    at = verdict.at
    if (verdict.kind === 'discard') retryAfter = max(retryAfter ?? 0n, verdict.retryAfter)
    else commits.push(verdict.commit)
  }
  if (retryAfter !== undefined) return { kind: 'discard', at, retryAfter }
  return { kind: 'eligible', at, commit: () => { for (const commit of commits) commit() } }
}
