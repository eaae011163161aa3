// What has arrived and waits for the application, one queue for each class (flow-control.md, PAUSE from client to relay).
export interface Entry {
  readonly bytes: number
  /** Takes place when the application is ready for it. */
  readonly run: () => void | Promise<void>
  /** Makes a gap out of it when there is no room; null: it is bounded elsewhere and is never dropped. */
  readonly dropped: (() => void) | null
}

const HIGH = 1_048_576
const LOW = 524_288
const CAP = 8_388_608
const UNPAUSABLE = 6

export class Inbox {
  private readonly queues: Entry[][] = Array.from({ length: 7 }, () => [])
  private readonly bytes: number[] = new Array<number>(7).fill(0)
  private readonly running: boolean[] = new Array<boolean>(7).fill(false)
  private readonly paused: boolean[] = new Array<boolean>(7).fill(false)

  constructor(private readonly onPause: (cls: number, paused: boolean) => void, private readonly onFault: (error: unknown) => void) {}

  add(cls: number, entry: Entry): void {
    if (entry.dropped !== null && this.bytes[cls] + entry.bytes > CAP) return entry.dropped()
    this.queues[cls].push(entry)
    this.bytes[cls] += entry.bytes
    if (!this.running[cls]) void this.pump(cls)
    if (cls !== UNPAUSABLE && !this.paused[cls] && this.bytes[cls] > HIGH) this.setPaused(cls, true)
  }

  /** Something at its place in the order of the class that takes no room, such as a gap. */
  mark(cls: number, run: () => void): void { this.add(cls, { bytes: 0, run, dropped: null }) }

  pausedClasses(): number[] { return this.paused.flatMap((paused, cls) => paused ? [cls] : []) }

  private setPaused(cls: number, paused: boolean): void {
    this.paused[cls] = paused
    this.onPause(cls, paused)
  }

  private async pump(cls: number): Promise<void> {
    this.running[cls] = true
    const queue = this.queues[cls]
    let entry: Entry | undefined
    while ((entry = queue.shift()) !== undefined) {
      try {
        const result = entry.run()
        if (result !== undefined) await result
      } catch (error) {
        this.onFault(error)
      }
      this.bytes[cls] -= entry.bytes
      if (this.paused[cls] && this.bytes[cls] < LOW) this.setPaused(cls, false)
    }
    this.running[cls] = false
  }
}
