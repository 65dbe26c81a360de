// Rules of a lab host: what runs in it comes back exactly, nobody without the secret gets in, and it never outlives its owner.
import { spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { processStart } from '../../images/cache.ts';
import { startCommand } from '../../lab/client.ts';
import { type Lab, startLab } from '../../lab/lab.ts';
import { liveLabs } from '../../lab/lab-directory.ts';
import { labUnavailable } from '../../lab/packages.ts';
import { repoRoot } from '../../lab/root.ts';

const unavailable = labUnavailable();
if (unavailable !== null) console.log(`skipped: lab-host: ${unavailable}`);

/** Polls until it is true; the limit is ten times what was measured. */
async function eventually(what: string, check: () => boolean | Promise<boolean>, limitMs = 20_000): Promise<void> {
  const limit = Date.now() + limitMs;
  while (!(await check())) {
    if (Date.now() > limit) throw new Error(`not within ${limitMs} ms: ${what}`);
    await sleep(50);
  }
}

describe.skipIf(unavailable !== null)('a lab host', () => {
  let lab: Lab;
  beforeAll(async () => {
    lab = await startLab({ devices: ['edu'] });
  });
  afterAll(() => lab?.close());

  it('is a Linux 6.12 with KVM, iommufd, VFIO and the devices asked for, all addresses as told', async () => {
    const host = lab.host(0);
    const text = await host.run('uname -r; ls /dev/kvm /dev/iommu /dev/vfio/vfio; cat /proc/cpuinfo | grep -cw svm');
    expect(text).toMatch(/^6\.12\.\S+\n\/dev\/iommu\n\/dev\/kvm\n\/dev\/vfio\/vfio\n1\n$/);
    expect(await host.run(`cat /sys/bus/pci/devices/${host.bdf('edu')}/device`)).toBe('0x11e8\n');
    expect(host.consoleLog()).not.toContain('LAB init:');
  });

  it('hands over exit codes, signals, both outputs, arguments, environment and directory as they are', async () => {
    const host = lab.host(0);
    expect(await host.exec('echo out; echo err >&2; exit 7')).toMatchObject({
      code: 7,
      signal: null,
      stdout: 'out\n',
      stderr: 'err\n',
    });
    expect(await host.exec('kill -TERM $$')).toMatchObject({ code: null, signal: 'SIGTERM' });
    const words = await host.run(['printf', '%s|', "a b'c", '$HOME', '']);
    expect(words).toBe("a b'c|$HOME||");
    expect(await host.run('echo $X; pwd', { env: { X: 'y z' }, cwd: '/usr' })).toBe('y z\n/usr\n');
    await expect(host.exec(['/no/such/program'])).rejects.toThrow(/could not run the command: .*ENOENT/);
    await expect(host.run('echo why >&2; false')).rejects.toThrow(/ended with 1: why/);
  });

  it('carries 8 MiB through stdin and stdout unchanged, and a command that never reads its stdin blocks nobody', async () => {
    const host = lab.host(0);
    const bytes = randomBytes(8 << 20);
    const { stdoutBytes } = await host.exec('cat', { stdin: bytes });
    expect(createHash('sha256').update(stdoutBytes).digest('hex')).toBe(
      createHash('sha256').update(bytes).digest('hex'),
    );
    expect(await host.exec('exit 3', { stdin: bytes })).toMatchObject({ code: 3 });
  });

  it('runs commands side by side', async () => {
    const host = lab.host(0);
    const answers = await Promise.all([1, 2, 3, 4, 5].map((n) => host.run(`sleep 0.$((6 - ${n})); echo ${n}`)));
    expect(answers).toEqual(['1\n', '2\n', '3\n', '4\n', '5\n']);
  });

  it('kills the whole process group when the client disconnects or its time is over', async () => {
    const host = lab.host(0);
    const running = async (mark: string) => (await host.exec(['pgrep', '-f', `sleep ${mark}`])).code === 0;
    const child = host.spawn('sleep 4711 & sleep 4711; true');
    await eventually('the sleeps run', () => running('4711'));
    child.disconnect();
    await expect(child.done).rejects.toThrow(/connection to the lab host was lost/);
    await eventually('the sleeps are gone', async () => !(await running('4711')));
    await expect(host.exec('echo begun; sleep 4712 | cat', { timeoutMs: 1000 })).rejects.toThrow(
      /took longer .* begun/,
    );
    await eventually('the late one is gone', async () => !(await running('4712')));
  });

  it('refuses a wrong secret and runs nothing for it', async () => {
    const { port, secretFile } = lab.host(0).record();
    expect(statSync(secretFile).mode & 0o777).toBe(0o600);
    const right = readFileSync(secretFile, 'latin1').trim();
    for (const secret of ['', 'x', `${right.slice(0, -1)}!`, `${right} `]) {
      const status = await startCommand({ port, secret }, 'touch /tmp/was-here').done;
      expect(status).toEqual({ code: null, signal: null, error: 'agent: wrong secret' });
    }
    expect((await lab.host(0).exec('ls /tmp/was-here')).code).toBe(2);
  });

  it('shares /hw coherently both ways and sees a file of the repository that changes, which it cannot write', async () => {
    const host = lab.host(0);
    for (const text of ['one', 'two!']) {
      writeFileSync(join(host.share, 'from-outside'), text);
      expect(await host.run('cat /hw/from-outside')).toBe(text);
      await host.run(`echo -n inner-${text} > /hw/from-inside`);
      expect(readFileSync(join(host.share, 'from-inside'), 'utf8')).toBe(`inner-${text}`);
    }
    expect(await host.run(['cat', join(repoRoot(), 'package.json')])).toBe(
      readFileSync(join(repoRoot(), 'package.json'), 'utf8'),
    );
    expect((await host.exec(`touch ${repoRoot()}/x`)).code).toBe(1);
  });

  it('that crashes fails the running command with the end of its console', async () => {
    const crash = await startLab({ devices: [], memoryMiB: 1024 });
    try {
      const host = crash.host(0);
      await expect(host.exec('sleep 1; echo c > /proc/sysrq-trigger; sleep 100')).rejects.toThrow(
        /lab host host-a crashed[\s\S]*sysrq triggered crash/,
      );
      expect(host.crashed).toBe(true);
    } finally {
      await crash.close();
    }
    expect(existsSync(crash.dir)).toBe(false);
  });
});

describe.skipIf(unavailable !== null)('a lab whose owner is killed', () => {
  it('ends by itself, and whoever comes next removes what it left', async () => {
    const base = mkdtempSync(join(tmpdir(), 'ferry-labs-'));
    const before = process.env['FERRY_LAB_DIR'];
    // In the repository, since the lab looks for it around its own file.
    mkdirSync(join(repoRoot(), 'out'), { recursive: true });
    const bundle = join(repoRoot(), `out/lab-owner-${process.pid}.cjs`);
    const source = `import { startLab } from '${repoRoot()}/lab/lab.ts'; startLab({ name: 'orphan', devices: [], memoryMiB: 1024 }).then((lab) => console.log('up', lab.host(0).record().qemuPid));`;
    const esbuild = ['--bundle', '--platform=node', '--format=cjs', '--loader=ts', '--log-level=error'];
    try {
      const bundled = spawn(join(repoRoot(), 'node_modules/.bin/esbuild'), [...esbuild, `--outfile=${bundle}`], {
        cwd: repoRoot(),
        stdio: ['pipe', 'inherit', 'inherit'],
      });
      bundled.stdin.end(source);
      await new Promise((resolve) => bundled.on('close', resolve));
      process.env['FERRY_LAB_DIR'] = join(base, 'labs');
      const owner = spawn(process.execPath, [bundle], { stdio: ['ignore', 'pipe', 'inherit'] });
      const pid = await new Promise<number>((resolve, reject) => {
        owner.stdout.on('data', (chunk: Buffer) => resolve(Number(/up (\d+)/.exec(chunk.toString())?.[1])));
        owner.on('exit', (code) => reject(new Error(`the owner ended with ${code}`)));
      });
      expect(processStart(pid)).not.toBeNull();
      expect((await liveLabs()).map((each) => each.name)).toEqual(['orphan']);
      owner.kill('SIGKILL');
      await eventually('QEMU is gone', () => processStart(pid) === null);
      expect(await liveLabs()).toEqual([]);
      expect(existsSync(join(base, 'labs/orphan'))).toBe(false);
    } finally {
      if (before === undefined) delete process.env['FERRY_LAB_DIR'];
      else process.env['FERRY_LAB_DIR'] = before;
      rmSync(base, { recursive: true, force: true });
      rmSync(bundle, { force: true });
    }
  });
});
