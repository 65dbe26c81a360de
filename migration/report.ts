// Collects what the report of a migration says while it goes on: rounds, bytes, downtime by parts. Filled by rounds.ts, switchover.ts and
// source.ts, read by control and cli; main-job.md, "report.json". All times are of the source's own clock but load and resume.
import type { DirtyRound } from '../vmm/api.ts';
import type { DirtyPages, MigrationReport, RoundReport } from './api.ts';
import type { DowntimePart } from './phases.ts';

type Part = DowntimePart | 'resume';

export class ReportBuilder {
  readonly #began = performance.now();
  readonly #rounds: RoundReport[] = [];
  readonly #parts: Record<Part, number> = { stop: 0, finalRam: 0, deviceData: 0, state: 0, load: 0, resume: 0 };
  readonly #dirty: { -readonly [Kind in keyof DirtyPages]: number | null } = {
    kvm: null,
    vmm: null,
    deviceLog: null,
    region: null,
    container: null,
    iommufd: null,
  };
  readonly bytes = { ram: 0, zeroPages: 0, device: 0, state: 0 };
  devices: MigrationReport['devices'] = [];
  downtimeMs = 0;

  get elapsedMs(): number {
    return performance.now() - this.#began;
  }

  get rounds(): readonly RoundReport[] {
    return this.#rounds;
  }

  /** `first`: the initial full pass, whose counts say nothing about the sources. */
  dirtyOf(round: DirtyRound, first: boolean): DirtyPages {
    const { kvm, vmm, deviceLog, region, container, iommufd } = round.pages;
    const pages: DirtyPages = { kvm, vmm, deviceLog, region, container, iommufd };
    for (const kind of ['kvm', 'vmm', 'deviceLog', 'region', 'container', 'iommufd'] as const) {
      const count = pages[kind];
      if (count !== null) this.#dirty[kind] = (this.#dirty[kind] ?? 0) + (first ? 0 : count);
    }
    return pages;
  }

  round(round: Omit<RoundReport, 'n'>): void {
    this.#rounds.push({ n: this.#rounds.length + 1, ...round });
  }

  add(part: Part, ms: number): void {
    this.#parts[part] += Math.max(0, ms);
  }

  build(): MigrationReport {
    const tenth = (ms: number): number => Math.round(ms * 10) / 10;
    const { stop, finalRam, deviceData, state, load, resume } = this.#parts;
    return {
      rounds: [...this.#rounds],
      totalMs: tenth(this.elapsedMs),
      downtimeMs: tenth(this.downtimeMs),
      downtime: {
        stop: tenth(stop),
        finalRam: tenth(finalRam),
        deviceData: tenth(deviceData),
        state: tenth(state),
        load: tenth(load),
        resume: tenth(resume),
      },
      bytes: { ...this.bytes },
      dirty: { ...this.#dirty },
      devices: this.devices,
    };
  }
}
