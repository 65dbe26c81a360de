// A promise with a deadline and a sentence. Used for everything in this room that a driver may keep for as long as it likes.
// The kernel cannot be told to give up, so the operation goes on: whoever times out must treat its late result (see `late`).
import { VmmError } from '../../native/errno.ts';

export interface Deadline {
  readonly ms: number;
  /** What was being done, for the message: "0000:65:00.0: going to STOP_COPY". */
  readonly what: string;
}

/** For what the IOMMU's driver does without touching each page. */
export const IOMMU_MS = 30_000;
/** Measured 6 ms a MiB in a lab host; ten times that. */
const PIN_MS_PER_MIB = 60;

/** For what pins, unpins, or walks the page tables of so much RAM. */
export function pinningMs(bytes: number): number {
  return IOMMU_MS + (bytes / 2 ** 20) * PIN_MS_PER_MIB;
}

/** Rejects with VmmError 'deadline' when `work` takes longer. `late` gets a result that came after that. */
export function within<T>(work: Promise<T>, deadline: Deadline, late: ((value: T) => void) | null = null): Promise<T> {
  return new Promise<T>((resolve, reject) => {
    let over = false;
    const timer = setTimeout(() => {
      over = true;
      const seconds = (deadline.ms / 1000).toFixed(1);
      reject(
        new VmmError('deadline', `${deadline.what}: no answer from the driver within ${seconds} s`, { exitCode: 1 }),
      );
    }, deadline.ms);
    work.then(
      (value) => {
        clearTimeout(timer);
        if (!over) resolve(value);
        else late?.(value);
      },
      (error: unknown) => {
        clearTimeout(timer);
        if (!over) reject(error);
      },
    );
  });
}
