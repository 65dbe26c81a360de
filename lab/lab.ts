// A lab: one or two lab hosts that this process owns. `startLab` is what tests, `ferry lab up` and the demo call. Builds the image when it
// is not in the cache; boots the hosts in parallel; close() ends all and removes the work directory. If the owner dies, the hosts do too.
import { randomBytes } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { processTag } from '../images/cache.ts';
import { type LabImage, labImage } from '../images/lab/image.ts';
import { type ExtraModule, type OwnKernel, ownImage } from '../images/lab/own-kernel.ts';
import { VmmError } from '../native/errno.ts';
import { agentBundle } from './agent-bundle.ts';
import { LabHost } from './host.ts';
import { createLabDirectory, removeLabDirectory, writeRecord } from './lab-directory.ts';
import { setLink } from './link.ts';
import { findProgram, missingLabPackages } from './packages.ts';
import { type HostPlan, type LabDeviceKind, placeDevices } from './qemu-command.ts';
import { cacheRoot, repoRoot } from './root.ts';
import { isListening } from './unix-socket.ts';

export interface LabOptions {
  readonly hosts?: 1 | 2;
  /** Devices of each host. */
  readonly devices?: readonly LabDeviceKind[];
  readonly memoryMiB?: number;
  /** Default: one that nobody else has. */
  readonly name?: string;
  /** Progress, a line at a time. Default: nowhere. */
  readonly say?: (line: string) => void;
  /** Ends a boot that is under way; whoever has the lab closes it. */
  readonly signal?: AbortSignal;
  /** More arguments for each QEMU. */
  readonly extra?: readonly string[];
  /** A kernel and modules that the user brings along; null: Debian's, with our drivers. */
  readonly own?: { readonly kernel: OwnKernel; readonly modules: readonly ExtraModule[] } | null;
}

/** Throws one clear line when Debian packages are missing. */
export function requireLabPackages(): void {
  const missing = missingLabPackages();
  if (missing.length > 0)
    throw new VmmError(
      'ELAB',
      `the lab needs Debian packages that are not installed; run: apt-get install -y ${missing.join(' ')}`,
    );
}

/** Builds or finds the image. */
export async function buildLabImage(say: (line: string) => void, refresh = false): Promise<LabImage> {
  requireLabPackages();
  return labImage({ root: repoRoot(), cache: cacheRoot(), busybox: findProgram('busybox')!, say }, { refresh });
}

/** What the hosts boot. */
interface Bootable {
  readonly kernel: string;
  readonly initrd: string;
  /** null: the user's own kernel. */
  readonly image: LabImage | null;
}

async function bootableOf({ own = null }: LabOptions, say: (line: string) => void): Promise<Bootable> {
  if (own === null) {
    const image = await buildLabImage(say);
    return { kernel: image.vmlinux, initrd: image.initrd, image };
  }
  requireLabPackages();
  const { kernel, initrd } = await ownImage({
    own: own.kernel,
    extra: own.modules,
    cache: cacheRoot(),
    init: join(repoRoot(), 'images/lab/init'),
    busybox: findProgram('busybox')!,
    say,
  });
  return { kernel, initrd, image: null };
}

/** Builds what a lab with these options boots, without booting it. */
export async function prepareLab(options: LabOptions, say: (line: string) => void): Promise<void> {
  await bootableOf(options, say);
}

export class Lab {
  readonly name: string;
  readonly dir: string;
  readonly hosts: readonly LabHost[];
  readonly #image: LabImage | null;
  #closed: Promise<void> | null = null;

  constructor(parts: { name: string; dir: string; hosts: readonly LabHost[]; image: LabImage | null }) {
    this.name = parts.name;
    this.dir = parts.dir;
    this.hosts = parts.hosts;
    this.#image = parts.image;
  }

  get image(): LabImage {
    if (this.#image === null) throw new VmmError('ELAB', `the lab ${this.name} runs a kernel of its user's own`);
    return this.#image;
  }

  /** host(0) is at 10.9.0.11, host(1) at 10.9.0.12. */
  host(index: number): LabHost {
    const host = this.hosts[index];
    if (host === undefined) throw new VmmError('ELAB', `the lab ${this.name} has no host ${index}`);
    return host;
  }

  /** Cuts or mends the link between the hosts, silently. */
  setLink(up: boolean): Promise<void> {
    return setLink(this.hosts, up);
  }

  close(): Promise<void> {
    this.#closed ??= Promise.allSettled(this.hosts.map((host) => host.close())).then(() =>
      removeLabDirectory(this.dir),
    );
    return this.#closed;
  }
}

const HOST_NAMES = ['host-a', 'host-b'];

async function bootAll(plans: readonly HostPlan[], agent: string, signal: AbortSignal | null): Promise<LabHost[]> {
  const booting: Promise<LabHost>[] = [];
  for (const plan of plans) {
    // The first host listens on the link's socket, so the second QEMU may start only when that is there.
    if (plan.index > 0 && plan.linkSocket !== null) {
      const socket = plan.linkSocket;
      const failed = Promise.race(booting.map((each) => each.then(() => null)));
      while (!isListening(socket)) await Promise.race([sleep(10), failed]);
    }
    const host = LabHost.boot(plan, { agent }, signal);
    host.catch(() => {});
    booting.push(host);
  }
  const settled = await Promise.allSettled(booting);
  const hosts = settled.flatMap((each) => (each.status === 'fulfilled' ? [each.value] : []));
  const failure = settled.find((each) => each.status === 'rejected');
  if (failure === undefined) return hosts;
  await Promise.allSettled(hosts.map((host) => host.close()));
  throw failure.reason;
}

/** Boots a lab. Resolves when every host runs commands. */
export async function startLab(options: LabOptions = {}): Promise<Lab> {
  const say = options.say ?? (() => {});
  const { kernel, initrd, image } = await bootableOf(options, say);
  const agent = await agentBundle(repoRoot());
  options.signal?.throwIfAborted();
  const name = options.name ?? `lab-${process.pid}-${randomBytes(3).toString('hex')}`;
  const dir = await createLabDirectory(name);
  try {
    const count = options.hosts ?? 1;
    const plans = HOST_NAMES.slice(0, count).map((host, index): HostPlan => {
      return {
        name: host,
        index,
        dir: join(dir, host),
        kernel,
        initrd,
        repo: repoRoot(),
        cache: cacheRoot(),
        memoryMiB: options.memoryMiB ?? 2048,
        devices: placeDevices(options.devices ?? ['edu', 'nvme', 'e1000e']),
        linkSocket: count > 1 ? join(dir, 'link.sock') : null,
        extra: options.extra ?? [],
      };
    });
    for (const plan of plans) await mkdir(join(plan.dir, 'work'), { recursive: true, mode: 0o700 });
    say(`booting ${count === 1 ? 'a lab host' : `${count} lab hosts`}`);
    const hosts = await bootAll(plans, agent, options.signal ?? null);
    await writeRecord(dir, { name, owner: processTag(), ready: true, hosts: hosts.map((host) => host.record()) });
    return new Lab({ name, dir, hosts, image });
  } catch (error) {
    removeLabDirectory(dir);
    throw error;
  }
}
