// Rules: a multiboot guest gets what its loader promised (memory map, command line, module, exit code); PIT and local APIC wake a halted
// vCPU; 4 and 16 vCPUs start and see one clock that never goes back; the worker's own verification holds, and notices a flipped bit.
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import type { Machine } from '../../vmm/api.ts';
import { bootFlat, type FlatMachine, type FlatOptions } from './flat-machine.ts';

const hasKvm = existsSync('/dev/kvm');
if (!hasKvm) console.log('skipped: there is no /dev/kvm');

const machines: Machine[] = [];
afterEach(async () => {
  await Promise.all(machines.splice(0).map((machine) => machine.close()));
});

async function start(guest: string, options: FlatOptions = {}): Promise<FlatMachine> {
  const flat = await bootFlat(guest, options);
  machines.push(flat.machine);
  await flat.machine.start();
  return flat;
}
const field = (text: string, name: string): number =>
  Number(new RegExp(`\\b${name}=(\\d+)`).exec(text)?.[1] ?? Number.NaN);

describe.skipIf(!hasKvm)('flat guests on /dev/kvm', () => {
  test('hello: memory sizes, map, command line, module; code 3 at port 0xf4 is exit code 7', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'ferry-module-'));
    try {
      const module = join(dir, 'env');
      writeFileSync(module, 'NR_CPUS=2\nMEMSIZE=64\n');
      const flat = await start('hello', { append: 'code=3 word', initrd: module, memory: 64 * 2 ** 20 });
      expect(await flat.machine.ended).toMatchObject({ exitCode: 7 });
      expect(flat.text()).toMatch(/hello from a flat guest/);
      expect(field(flat.text(), 'lower')).toBe(640);
      expect(field(flat.text(), 'upper')).toBe(63 * 1024);
      expect(flat.text()).toMatch(/cmdline=\S*hello-\S+ code=3 word/);
      expect(flat.text()).toContain('map start=0x100000 length=0x3f00000 type=1');
      expect(flat.text()).toContain('module=NR_CPUS=2');
    } finally {
      rmSync(dir, { recursive: true });
    }
  });

  test('exits: port and MMIO accesses where nothing is go on, and read as ones', async () => {
    const port = await start('exits', { append: 'count=50 port=128 read=1' });
    expect(await port.machine.ended).toMatchObject({ exitCode: 1 });
    expect(field(port.text(), 'sum')).toBe(50 * 0xff);
    const mmio = await start('exits', { append: 'count=50 mmio=1 read=1' });
    expect(await mmio.machine.ended).toMatchObject({ exitCode: 1 });
    expect(field(mmio.text(), 'sum')).toBe(50 * 0xffff_ffff);
  });

  test('timer: the PIT through the PIC and the local APIC timer wake a halted vCPU', async () => {
    const flat = await start('timer', { append: 'count=10' });
    expect(await flat.machine.ended).toMatchObject({ exitCode: 1 });
    expect(flat.text()).toMatch(/pit fired=\d\d/);
    expect(flat.text()).toMatch(/apic fired=\d\d/);
  });

  test.each([4, 16])('smp: %i vCPUs start, and kvmclock never goes back between them', async (cpus) => {
    const flat = await start('smp', { cpus, append: `cpus=${cpus} rounds=20` });
    expect(await flat.machine.ended).toMatchObject({ exitCode: 1 });
    const verdict = /verdict .*/.exec(flat.text())?.[0] ?? '';
    expect(field(verdict, 'reads')).toBe(cpus * 20);
    expect(field(verdict, 'back')).toBe(0);
  });

  test('worker: ticks and verified pages; q ends it with a clean verdict', async () => {
    const flat = await start('worker', { append: 'pages=32 batch=8 tick=5000' });
    await flat.said(/tick n=12 .*\n/);
    flat.type('q');
    expect(await flat.machine.ended).toMatchObject({ exitCode: 1 });
    const verdict = /verdict .*/.exec(flat.text())?.[0] ?? '';
    expect(field(verdict, 'checks')).toBeGreaterThan(0);
    expect([field(verdict, 'errors'), field(verdict, 'back')]).toEqual([0, 0]);
    const counters = [...flat.text().matchAll(/^tick n=(\d+)/gm)].map((m) => Number(m[1]));
    expect(counters).toEqual(counters.map((_, i) => i + 1));
  });

  test('worker, negative control: a bit that was flipped in one page is found', async () => {
    const flat = await start('worker', { append: 'pages=16 batch=8 tick=5000' });
    await flat.said(/tick n=4 .*\n/);
    flat.type('f');
    await flat.said(/errors=1 /);
    flat.type('q');
    expect(await flat.machine.ended).toMatchObject({ exitCode: 3 });
  });
});
