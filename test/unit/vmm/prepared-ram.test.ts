// RAM that `ferry receive --memory SIZE --preallocate` allocates while it waits: whole, for a machine of that size, once.
import { expect, it } from 'vitest';
import { PreparedRam } from '../../../vmm/prepared-ram.ts';

const MIB = 1048576;

it('is allocated when it is there, and is taken once, by a machine of its size', async () => {
  const prepared = await PreparedRam.of(8 * MIB);
  expect(prepared.take(4 * MIB)).toBe(null);
  const ram = prepared.take(8 * MIB);
  expect(ram?.size).toBe(8 * MIB);
  expect(ram?.resident()).toBe(8 * MIB);
  expect(prepared.take(8 * MIB)).toBe(null);
  prepared.close(); // no longer its owner
  expect(ram?.resident()).toBe(8 * MIB);
  ram?.close();
});

it('is given back when no guest came', async () => {
  const prepared = await PreparedRam.of(8 * MIB);
  prepared.close();
  expect(prepared.take(8 * MIB)).toBe(null);
});
