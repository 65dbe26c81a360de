// What a guest, a device or the operator wants of the machine as a whole: a reset or its end. Called from within exits (ExitEnds, and
// DeviceHost's requestReset and requestEnd), so it only notes the wish and stops the vCPUs at once; machine.ts carries it out when they
// are parked. JS thread. main-job.md, "Guest ends and the probe".
import type { EndReason, ResetReason } from '../devices/contract.ts';
import type { ExitEnds } from './exits.ts';

export type Request =
  | { readonly kind: 'reset'; readonly reason: ResetReason }
  | { readonly kind: 'end'; readonly reason: EndReason; readonly exitCode: number; readonly detail: string | null };

export class GuestRequests implements ExitEnds {
  readonly #rip: (vcpu: number) => bigint;
  readonly #noted: () => void;
  #pending: Request | null = null;

  /** `noted`: must stop the vCPUs before it returns, so that none runs past the access that asked. */
  constructor(rip: (vcpu: number) => bigint, noted: () => void) {
    this.#rip = rip;
    this.#noted = noted;
  }

  get pending(): boolean {
    return this.#pending !== null;
  }

  take(): Request | null {
    const request = this.#pending;
    this.#pending = null;
    return request;
  }

  requestReset(reason: ResetReason): void {
    this.#note({ kind: 'reset', reason });
  }

  requestEnd(reason: EndReason, exitCode: number): void {
    this.#note({ kind: 'end', reason, exitCode, detail: null });
  }

  reset(): void {
    this.requestReset('guest-reset');
  }

  shutdown(): void {
    this.requestEnd('guest-shutdown', 0);
  }

  crash(): void {
    this.requestEnd('guest-panic', 1);
  }

  internalError(detail: string): void {
    this.#note({ kind: 'end', reason: 'internal-error', exitCode: 1, detail });
  }

  rip(vcpu: number): bigint {
    return this.#rip(vcpu);
  }

  /** The first wish counts, but an end outweighs a reset. */
  #note(request: Request): void {
    if (this.#pending === null || (this.#pending.kind === 'reset' && request.kind === 'end')) this.#pending = request;
    this.#noted();
  }
}
