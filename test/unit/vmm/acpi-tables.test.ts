// Rules: every ACPI table adds up to zero, the RSDP leads to all of them, the MADT has each vCPU, and Intel's own disassembler reads
// the whole set without a complaint and finds in it what the board has.
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { type AcpiTable, acpiTables, RSDP_ADDRESS } from '../../../vmm/acpi/tables.ts';
import { pciGsi } from '../../../vmm/layout.ts';

const GIB = 2 ** 30;
const sum = (bytes: Uint8Array): number => bytes.reduce((s, b) => s + b, 0) & 0xff;
const signature = (t: AcpiTable): string => Buffer.from(t.bytes.subarray(0, 4)).toString('latin1');
const find = (tables: AcpiTable[], name: string): AcpiTable => {
  const found = tables.find((t) => signature(t) === name);
  if (found === undefined) throw new Error(`no ${name}`);
  return found;
};

describe('ACPI tables', () => {
  test.each([1, 4, 16])('with %i vCPUs every checksum holds and no table overlaps another', (cpus) => {
    const tables = acpiTables(cpus, GIB);
    for (const t of tables.filter((t) => signature(t) !== 'FACS')) expect(sum(t.bytes), signature(t)).toBe(0);
    expect(sum(find(tables, 'RSD ').bytes.subarray(0, 20))).toBe(0);
    for (const [i, t] of tables.entries()) {
      const next = tables[i + 1];
      if (next !== undefined) expect(t.address + t.bytes.length).toBeLessThanOrEqual(next.address);
    }
  });

  test('RSDT and XSDT, as the RSDP names them, lead to FADT, MADT and MCFG, and the FADT to DSDT and FACS', () => {
    const tables = acpiTables(2, GIB);
    const at = (address: number): AcpiTable => {
      const found = tables.find((t) => t.address === address);
      if (found === undefined) throw new Error(`nothing at ${address}`);
      return found;
    };
    const view = (t: AcpiTable): DataView => new DataView(t.bytes.buffer);
    const rsdp = view(at(RSDP_ADDRESS));
    const rsdt = at(rsdp.getUint32(16, true));
    const xsdt = at(Number(rsdp.getBigUint64(24, true)));
    const names = [0, 1, 2].map((i) => signature(at(Number(view(xsdt).getBigUint64(36 + i * 8, true)))));
    expect(names).toEqual(['FACP', 'APIC', 'MCFG']);
    expect([0, 1, 2].map((i) => signature(at(view(rsdt).getUint32(36 + i * 4, true))))).toEqual(names);
    const fadt = view(find(tables, 'FACP'));
    expect(signature(at(fadt.getUint32(36, true)))).toBe('FACS');
    expect(fadt.getUint32(36, true) % 64).toBe(0); // ACPI 5.2.10
    expect(signature(at(fadt.getUint32(40, true)))).toBe('DSDT');
  });

  test('the MADT has one enabled local APIC for each vCPU, numbered from 0', () => {
    const madt = find(acpiTables(16, GIB), 'APIC').bytes;
    const ids: number[] = [];
    for (let at = 44; at < madt.length; at += madt[at + 1]!) {
      if (madt[at] === 0 && madt[at + 4] === 1) ids.push(madt[at + 3]!);
    }
    expect(ids).toEqual(Array.from({ length: 16 }, (_, i) => i));
  });

  const iasl = spawnSync('iasl', ['-v']).error === undefined;
  if (!iasl) console.log('skipped: iasl is not installed (apt-get install acpica-tools)');
  test.skipIf(!iasl).each([256 * 2 ** 20, 8 * GIB])(
    'iasl takes all tables apart and builds the DSDT again (%i bytes of RAM)',
    (memory) => {
      const dir = mkdtempSync(join(tmpdir(), 'ferry-acpi-'));
      try {
        const tables = acpiTables(4, memory).filter((t) => signature(t) !== 'RSD ' && signature(t) !== 'FACS');
        for (const t of tables) {
          writeFileSync(join(dir, `${signature(t)}.aml`), t.bytes);
          const output = execFileSync('iasl', ['-d', `${signature(t)}.aml`], {
            cwd: dir,
            encoding: 'utf8',
            stdio: 'pipe',
          });
          expect(output, signature(t)).not.toMatch(/error|warning|invalid|unknown/i);
        }
        const dsdt = readFileSync(join(dir, 'DSDT.dsl'), 'utf8');
        for (const word of ['_S5', 'PNP0A08', 'PNP0501', 'PNP0B00', 'QEMU0001', '_PRT']) expect(dsdt).toContain(word);
        // Slot 3, INTA#.
        expect(dsdt).toMatch(
          new RegExp(`0x0003FFFF,\\s*Zero,\\s*Zero,\\s*0x${pciGsi(3, 0).toString(16).toUpperCase()}`),
        );
        const again = execFileSync('iasl', ['-p', 'again', 'DSDT.dsl'], { cwd: dir, encoding: 'utf8', stdio: 'pipe' });
        expect(again).toMatch(/ 0 Errors, 0 Warnings/);
        const fadt = readFileSync(join(dir, 'FACP.dsl'), 'utf8');
        expect(fadt).toMatch(/Reset Register Supported \(V2\) : 1/);
        expect(fadt).toMatch(/Control Method Power Button \(V1\) : 0/);
        expect(fadt).toMatch(/Hardware Reduced \(V5\) : 0/);
      } finally {
        rmSync(dir, { recursive: true });
      }
    },
  );
});
