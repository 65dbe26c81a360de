// A QEMU process for bench/ram.ts and for the interop test, driven by QMP over stdio: `-machine none -S` with its RAM in a file.
import { type ChildProcess, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';

export interface QemuOptions {
  readonly memoryFile: string;
  readonly bytes: number;
  readonly preallocate: boolean;
  readonly incoming: boolean;
  readonly binary?: string;
}

interface Message {
  readonly return?: unknown;
  readonly error?: { readonly desc: string };
  readonly event?: string;
  readonly data?: { readonly status?: string };
}

export class Qemu {
  readonly #child: ChildProcess;
  readonly #waiting: { take: (message: Message) => boolean; fail: (error: Error) => void }[] = [];
  /** MIGRATION events, which may come before somebody waits for them. */
  readonly #statuses: string[] = [];
  #errors = '';
  readonly ended: Promise<number | null>;

  private constructor(options: QemuOptions) {
    const backend = [
      'memory-backend-file,id=ram,share=on',
      `mem-path=${options.memoryFile},size=${options.bytes}`,
      `prealloc=${options.preallocate ? 'on' : 'off'}`,
    ].join(',');
    const args = ['-machine', 'none,memory-backend=ram', '-object', backend, '-m', `${options.bytes / 1048576}M`];
    args.push('-S', '-display', 'none', '-nodefaults', '-no-user-config', '-qmp', 'stdio');
    if (options.incoming) args.push('-incoming', 'defer');
    this.#child = spawn(options.binary ?? 'qemu-system-x86_64', args, { stdio: ['pipe', 'pipe', 'pipe'] });
    this.#child.stderr?.on('data', (text) => {
      this.#errors += text;
    });
    this.ended = new Promise((resolve) => this.#child.once('close', (code) => resolve(code)));
    this.ended.then(() => {
      for (const each of this.#waiting.splice(0)) each.fail(new Error(`qemu ended: ${this.#errors.trim()}`));
    });
    if (this.#child.stdout) createInterface(this.#child.stdout).on('line', (text) => this.#take(JSON.parse(text)));
  }

  static async start(options: QemuOptions): Promise<Qemu> {
    const qemu = new Qemu(options);
    await qemu.#next((message) => 'QMP' in message);
    await qemu.command('qmp_capabilities');
    await qemu.command('migrate-set-capabilities', { capabilities: [{ capability: 'events', state: true }] });
    await qemu.command('migrate-set-parameters', { 'max-bandwidth': 0 });
    return qemu;
  }

  get errors(): string {
    return this.#errors.trim();
  }

  #take(message: Message): void {
    if (message.event === 'MIGRATION') this.#statuses.push(message.data?.status ?? '');
    const at = this.#waiting.findIndex((each) => each.take(message));
    if (at >= 0) this.#waiting.splice(at, 1);
  }

  #next(wanted: (message: Message) => boolean): Promise<Message> {
    return new Promise((resolve, fail) => {
      const take = (message: Message) => {
        if (!wanted(message)) return false;
        resolve(message);
        return true;
      };
      this.#waiting.push({ take, fail });
    });
  }

  async command(execute: string, args: Record<string, unknown> = {}): Promise<unknown> {
    const answer = this.#next((message) => 'return' in message || 'error' in message);
    this.#child.stdin?.write(`${JSON.stringify({ execute, arguments: args })}\n`);
    const message = await answer;
    if (message.error) throw new Error(`${execute}: ${message.error.desc}`);
    return message.return;
  }

  /** Resolves at "completed", rejects at "failed" and when the process ends. */
  async migrated(): Promise<void> {
    const over = (status: string): boolean => status === 'completed' || status === 'failed';
    let status: string | undefined = this.#statuses.find(over);
    if (status === undefined) {
      const event = await this.#next((message) => message.event === 'MIGRATION' && over(message.data?.status ?? ''));
      status = event.data?.status;
    }
    if (status !== 'completed') throw new Error(`qemu: migration ${status}: ${this.errors}`);
  }

  /** Listens on `uri` and returns the URI to connect to (with the port that was chosen). */
  async listen(uri: string): Promise<string> {
    await this.command('migrate-incoming', { uri });
    if (!uri.startsWith('tcp:')) return uri;
    const info = (await this.command('query-migrate')) as { 'socket-address': { host: string; port: string }[] };
    const address = info['socket-address'][0];
    return `tcp:${address?.host}:${address?.port}`;
  }

  async quit(): Promise<void> {
    this.#child.kill('SIGTERM');
    await this.ended;
  }
}
