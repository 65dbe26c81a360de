// Rules: every loaded range is mapped in whole pages, a call that stops early is called again with the rest, and a KVM that refuses or
// makes no progress ends it at once without an error (pages then fault in by themselves).
import { expect, test } from 'vitest';
import type { KvmNode } from '../../../native/addon.ts';
import { SysError } from '../../../native/errno.ts';
import { prefault } from '../../../vmm/boot/prefault.ts';

type Call = [gpa: number, size: number];
/** A kernel that maps at most `step` bytes a call. */
function kernel(step: number): { calls: Call[]; addon: Pick<KvmNode, 'ioctlAsync'> } {
  const calls: Call[] = [];
  return {
    calls,
    addon: {
      async ioctlAsync(_name, _fd, _request, arg) {
        if (typeof arg === 'number') throw new Error('a struct is wanted');
        const view = new DataView(arg.buffer);
        const [gpa, size] = [Number(view.getBigUint64(0, true)), Number(view.getBigUint64(8, true))];
        calls.push([gpa, size]);
        const done = Math.min(step, size);
        view.setBigUint64(0, BigInt(gpa + done), true);
        view.setBigUint64(8, BigInt(size - done), true);
        return 0;
      },
    },
  };
}
const RANGES = [
  { start: 0x1000000, length: 0x5001 },
  { start: 0x2000800, length: 0x900 },
];

test('whole pages around every range', async () => {
  const { calls, addon } = kernel(Number.MAX_SAFE_INTEGER);
  expect(await prefault(addon, 5, RANGES)).toBe(0x8000);
  expect(calls).toEqual([
    [0x1000000, 0x6000],
    [0x2000000, 0x2000],
  ]);
});

test('a call that stops early goes on where it stopped', async () => {
  const { calls, addon } = kernel(0x4000);
  expect(await prefault(addon, 5, RANGES.slice(0, 1))).toBe(0x6000);
  expect(calls).toEqual([
    [0x1000000, 0x6000],
    [0x1004000, 0x2000],
  ]);
});

test('refusal and lack of progress end it quietly', async () => {
  const refuses: Pick<KvmNode, 'ioctlAsync'> = {
    ioctlAsync: () => Promise.reject(new SysError('KVM_PRE_FAULT_MEMORY', 95)),
  };
  expect(await prefault(refuses, 5, RANGES)).toBe(0);
  const { calls, addon } = kernel(0);
  expect(await prefault(addon, 5, RANGES)).toBe(0);
  expect(calls).toHaveLength(1);
});
