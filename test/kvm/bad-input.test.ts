// Rules (issue 2, "Bad input and faults"), each with the real bin/ferry on this host: one clear line with the remedy on stderr, exit code 2,
// nothing left behind - no process, no socket, no file. What needs VFIO is in test/lab/faults-input.test.ts.
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { vmlinux } from '../fakes/kernel-files.ts';
import { buildFlatGuest } from '../guests/build.ts';

const ROOT = resolve(import.meta.dirname, '../..');
const FERRY = join(ROOT, 'bin/ferry');
/** Measured: 0.3 s. */
const LIMIT_MS = 30_000;
const NOBODY = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups'];

function whyNot(): string | null {
  if (!existsSync('/dev/kvm')) return 'there is no /dev/kvm';
  if (!existsSync(join(ROOT, 'dist/ferry.cjs'))) return 'dist/ferry.cjs is missing: npm run build';
  return null;
}
/** What other users and mount namespaces need. */
function whyNotAsOther(): string | null {
  if (process.getuid?.() !== 0) return 'only root can be another user and hide /dev/kvm';
  const [program, ...args] = [...NOBODY, 'test', '-r', join(ROOT, 'dist/ferry.cjs')];
  return spawnSync(program!, args).status === 0 ? null : `other users cannot read ${ROOT}`;
}

const unavailable = whyNot();
if (unavailable !== null) console.log(`skipped: bad-input: ${unavailable}`);
const noOther = whyNotAsOther();
if (noOther !== null) console.log(`skipped: bad-input as another user: ${noOther}`);
const isHardware = /^flags\s.*\b(vmx|svm)\b/m.test(readFileSync('/proc/cpuinfo', 'utf8'));

describe.skipIf(unavailable !== null)('ferry run refuses in one line', () => {
  const dir = mkdtempSync(join(tmpdir(), 'ferry-bad-'));
  const own = join(dir, 'own');
  let hello = '';
  const weak = join(dir, 'vmlinux');
  const rubbish = join(dir, 'rubbish');
  const secret = join(dir, 'secret');
  beforeAll(() => {
    hello = buildFlatGuest('hello');
    chmodSync(dir, 0o755);
    mkdirSync(own, { mode: 0o777 });
    chmodSync(own, 0o777);
    writeFileSync(weak, vmlinux({ pvh: true }));
    writeFileSync(rubbish, 'no kernel at all\n'.repeat(1000));
    writeFileSync(secret, vmlinux({ pvh: true }), { mode: 0o600 });
  });
  afterAll(() => rmSync(dir, { recursive: true }));

  /** Its one line. `wrap`: a program that starts it in other circumstances. */
  function refusal(args: readonly string[], wrap: readonly string[] = []): string {
    const control = join(own, 'control.sock');
    const [program, ...rest] = [...wrap, process.execPath, FERRY, 'run', '--control', `unix:${control}`, ...args];
    const before = ours();
    const { status, stdout, stderr } = spawnSync(program!, rest, {
      encoding: 'utf8',
      timeout: LIMIT_MS,
      env: { ...process.env, XDG_CACHE_HOME: join(dir, 'cache'), HOME: '/root' },
    });
    expect(status, stderr).toBe(2);
    expect(stdout).toBe('');
    expect(stderr.trimEnd().split('\n'), stderr).toHaveLength(1);
    expect(stderr).toMatch(/^ferry: /);
    expect(readdirSync(own)).toEqual([]);
    expect(ours()).toEqual(before);
    return stderr;
  }

  /** Command lines of processes that run our bin/ferry with this test's socket. */
  function ours(): string[] {
    return readdirSync('/proc')
      .filter((name) => /^\d+$/.test(name))
      .flatMap((pid) => {
        try {
          return [readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ')];
        } catch {
          return [];
        }
      })
      .filter((line) => line.includes(join(own, 'control.sock')));
  }

  it('a kernel that is missing, or none', () => {
    expect(refusal(['--kernel', join(dir, 'nothing')])).toMatch(/no such file; give the path of a readable file/);
    expect(refusal(['--kernel', dir])).toMatch(/not a file; give/);
    expect(refusal(['--kernel', rubbish])).toMatch(/neither a bzImage nor an ELF file; give a Linux bzImage/);
    expect(refusal([])).toMatch(/--kernel is missing/);
    expect(refusal(['--kernel', weak, '--initrd', join(dir, 'nothing')])).toMatch(/--initrd .*no such file; give/);
  });

  it('RAM of 0, of nonsense, and beyond the host', () => {
    expect(refusal(['--kernel', hello, '--memory', '0'])).toMatch(/at least 1M; write for example 512M/);
    expect(refusal(['--kernel', hello, '--memory', 'much'])).toMatch(/no size; write for example 512M/);
    expect(refusal(['--kernel', hello, '--memory', '900T'])).toMatch(
      /this host has .* of RAM in all; give the guest less/,
    );
    expect(refusal(['--kernel', hello, '--cpus', '99'])).toMatch(/a number from 1 to 16/);
  });

  it('a bad -device syntax, and a PCI address that is not there', () => {
    const device = (text: string) => refusal(['--kernel', hello, '--device', text]);
    expect(device('vfio-pci,,host')).toMatch(/'vfio-pci,host' is not a valid device model name; there are: /);
    expect(device('nonsense')).toMatch(/'nonsense' is not a valid device model name; there are: .*vfio-pci/);
    expect(device('vfio-pci')).toMatch(/vfio-pci needs host=ADDRESS .*for example host=0000:65:00.0/);
    expect(device('vfio-pci,host=0000:00:00.0,colour=red')).toMatch(
      /Property 'vfio-pci.colour' not found; it has: .*host/,
    );
    expect(device('vfio-pci,host=here')).toMatch(/'here' is not a PCI address/);
    expect(device('{"driver": "vfio-pci", ')).toMatch(/not JSON; write/);
    expect(device('vfio-pci,host=0000:ff:1f.7')).toMatch(/no PCI device 0000:ff:1f.7 on this host/);
  });

  it('a KVM that is too weak for Linux: named with `ferry lab`', (context) => {
    context.skip(isHardware, "this host's KVM runs Linux");
    expect(refusal(['--kernel', weak])).toMatch(/\/dev\/kvm cannot run Linux: .*`ferry lab up`/);
  });

  it.skipIf(noOther !== null)('a /dev/kvm that is missing', () => {
    const hidden = ['unshare', '-m', 'sh', '-c', 'mount -t tmpfs none /dev && exec "$@"', 'sh'];
    expect(refusal(['--kernel', hello], hidden)).toMatch(/no KVM: enable virtualisation .*`ferry lab`/);
  });

  it.skipIf(noOther !== null)(
    'a /dev/kvm that is missing, of ferry receive: before anybody can reach it, and nothing is left',
    () => {
      const socket = join(own, 'incoming');
      const argv = ['-m', 'sh', '-c', 'mount -t tmpfs none /dev && exec "$@"', 'sh', join(ROOT, 'bin/ferry')];
      const { status, stderr } = spawnSync('unshare', [...argv, 'receive', `unix:${socket}`], { encoding: 'utf8' });
      expect(status, stderr).toBe(2);
      expect(stderr).toMatch(/^ferry: .*no KVM: enable virtualisation [^\n]*\n$/);
      expect(existsSync(socket)).toBe(false);
    },
  );

  it.skipIf(noOther !== null)('a /dev/kvm that this user may not open, also when no cache can be had', () => {
    const closed = join(dir, 'kvm');
    writeFileSync(closed, '', { mode: 0 });
    const mount = `mount --bind '${closed}' /dev/kvm && exec "$@"`;
    const denied = ['unshare', '-m', 'sh', '-c', mount, 'sh', ...NOBODY];
    expect(refusal(['--kernel', hello], denied)).toMatch(/\/dev\/kvm.*(EACCES|permi).*(group|root)/i);
  });

  it.skipIf(noOther !== null)('a kernel that this user may not read', () => {
    expect(refusal(['--kernel', secret], NOBODY)).toMatch(/not readable for this user; give the path/);
  });
});
