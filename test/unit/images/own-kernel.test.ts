// Rule: what is wrong with a kernel or a module of the user's own is one line before anything is built; a configuration is found where kernels
// keep it.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { afterAll, describe, expect, it } from 'vitest';
import {
  configBeside,
  embeddedConfig,
  missingOptions,
  NEEDED,
  parseKernelConfig,
} from '../../../images/lab/kernel-config.ts';
import { kernelRelease, parseExtraModule } from '../../../images/lab/own-kernel.ts';

const scratch = mkdtempSync(join(tmpdir(), 'ferry-own-kernel-'));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const whole = NEEDED.map(({ option, as }) => `CONFIG_${option}=${as}\n`).join('');

describe("a kernel's configuration", () => {
  it('is complete when each option is there, built in where that is needed', () => {
    expect(missingOptions(parseKernelConfig(whole), NEEDED)).toEqual([]);
    const modular = parseKernelConfig(whole.replaceAll('=y', '=m'));
    expect(missingOptions(modular, NEEDED)).toEqual(NEEDED.filter(({ as }) => as === 'y'));
    const without = parseKernelConfig(whole.replace('CONFIG_VFIO=m', '# CONFIG_VFIO is not set'));
    expect(missingOptions(without, NEEDED).map(({ option }) => option)).toEqual(['VFIO']);
  });

  it('is taken out of a kernel with CONFIG_IKCONFIG, and a torn one is none', () => {
    const packed = Buffer.concat([Buffer.from('xxIKCFG_ST'), gzipSync(whole), Buffer.from('IKCFG_EDyy')]);
    expect(embeddedConfig(packed)).toBe(whole);
    expect(embeddedConfig(packed.subarray(0, 60))).toBeNull();
    expect(embeddedConfig(Buffer.from('nothing'))).toBeNull();
  });

  it('is found beside the kernel, and in the tree that it was built in', async () => {
    const boot = join(scratch, 'tree/arch/x86/boot');
    mkdirSync(boot, { recursive: true });
    expect(await configBeside(join(boot, 'bzImage'), '6.1')).toBeNull();
    writeFileSync(join(scratch, 'tree/.config'), 'CONFIG_A=y\n');
    expect(await configBeside(join(boot, 'bzImage'), '6.1')).toBe('CONFIG_A=y\n');
    writeFileSync(join(boot, 'config-6.1'), 'CONFIG_B=y\n');
    expect(await configBeside(join(boot, 'bzImage'), '6.1')).toBe('CONFIG_B=y\n');
  });
});

describe("a kernel's release", () => {
  it('is what its header says, or the banner of an ELF kernel', () => {
    const image = Buffer.alloc(0x1000);
    image.write('HdrS', 0x202);
    image.writeUInt16LE(0x300, 0x20e);
    image.write('6.13.0-rc1+ (me@here) #1', 0x500);
    expect(kernelRelease(image, 'k')).toBe('6.13.0-rc1+');
    const elf = Buffer.concat([Buffer.from('\x7fELF'), Buffer.alloc(100), Buffer.from('Linux version 6.9.1 (x)')]);
    expect(kernelRelease(elf, 'k')).toBe('6.9.1');
  });

  it('is asked of a kernel only', () => {
    expect(() => kernelRelease(Buffer.alloc(0x1000), 'k')).toThrow('--kernel k: neither a bzImage nor an ELF kernel');
    expect(() => kernelRelease(Buffer.from('\x7fELF and more'), 'k')).toThrow('an ELF file, but no Linux kernel');
  });
});

describe('--module', () => {
  it('is a file and its parameters', () => {
    expect(parseExtraModule('/a/b.ko,x=1,y')).toEqual({ file: '/a/b.ko', parameters: ['x=1', 'y'] });
    expect(() => parseExtraModule('/a/b.so')).toThrow('expected FILE.ko');
    expect(() => parseExtraModule('/a/b.ko,x y')).toThrow('"x y" is no PARAM=VALUE');
  });
});
