// What the kernel complained of since it was last asked: /dev/kmsg and the taint mask. Read by run-rule.ts around every rule, and by a rule that
// expects no fault. Reads without blocking; null files (no permission, a container) are a fact of the report.
// Documentation/ABI/testing/dev-kmsg, Documentation/admin-guide/tainted-kernels.rst
import { closeSync, constants, openSync, readFileSync, readSync } from 'node:fs';
import { join } from 'node:path';
import type { HostPaths } from '../kernel-door.ts';

const COMPLAINT =
  /\b(WARNING|BUG|Oops|KASAN|UBSAN|refcount_t|general protection|DMAR: .*fault|IO_PAGE_FAULT|circular locking|recursive locking|blocked for more than|Call Trace)\b/i;

export interface KernelLog {
  /** Complaints since the last call. */
  take(): string[];
  close(): void;
}

export const DEAF: KernelLog = { take: () => [], close: () => {} };

/** null: /dev/kmsg cannot be read here. */
export function openKernelLog(paths: HostPaths): KernelLog | null {
  let fd: number;
  try {
    fd = openSync(join(paths.dev, 'kmsg'), constants.O_RDONLY | constants.O_NONBLOCK);
  } catch {
    return null;
  }
  let taint = taintOf(paths);
  records(fd);
  return {
    take() {
      const lines = records(fd).filter((line) => COMPLAINT.test(line));
      const now = taintOf(paths);
      if (now !== taint) lines.push(`kernel taint ${taint} -> ${now}`);
      taint = now;
      return lines;
    },
    close: () => closeSync(fd),
  };
}

/** Everything that there is to read: one record a read(), "prio,seq,time,flags;text". */
function records(fd: number): string[] {
  const lines: string[] = [];
  const into = Buffer.alloc(8192);
  for (;;) {
    try {
      const bytes = readSync(fd, into, 0, into.length, null);
      if (bytes === 0) return lines;
      const text = into.toString('utf8', 0, bytes);
      lines.push((text.slice(text.indexOf(';') + 1).split('\n')[0] ?? '').trim());
    } catch (error) {
      // EPIPE: records were overwritten before we read them; the next read goes on behind them.
      if ((error as NodeJS.ErrnoException).code !== 'EPIPE') return lines;
    }
  }
}

/** `G` and the like change with the first out-of-tree module only; what matters is that it changes while a rule runs. */
function taintOf(paths: HostPaths): string {
  try {
    return readFileSync(join(paths.proc, 'sys/kernel/tainted'), 'utf8').trim();
  } catch {
    return '';
  }
}
