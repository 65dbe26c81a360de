// The typed contract of the C++ addon kvm_node, and the only place that loads it. What is threaded, blocking, per page or carries fds
// is in there; policy is not. Every pointer, length and fd is checked in C++ at the door; failed syscalls throw/reject with SysError.
// Host addresses never become JS values: structs that the kernel wants pointers in are patched in C++ for the length of the call.
import { createRequire } from 'node:module';
import { StreamError, SysError } from './errno.ts';

/** 8 bytes at `at` of an ioctl argument become the host address of what is named, for the length of the call (then zero again). */
export type Patch =
  | { readonly at: number; readonly ram: GuestRam; readonly offset: number; readonly length: number }
  | { readonly at: number; readonly mapping: HostMapping; readonly offset: number; readonly length: number }
  /** `firstPage` must be a multiple of 64; `pages` bits are reachable. */
  | { readonly at: number; readonly bitmap: PageBitmap; readonly firstPage: number; readonly pages: number }
  | { readonly at: number; readonly bytes: Uint8Array };

/** One memfd that holds all guest RAM, mapped once. Sizes and offsets in bytes. */
export interface GuestRam {
  readonly fd: number;
  readonly size: number;
  /** 1 GiB windows (Node 20 refuses an ArrayBuffer over 4 GiB); the last may be shorter. The same object each time. */
  window(index: number): ArrayBuffer;
  copyOut(offset: number, into: Uint8Array): void;
  copyIn(offset: number, from: Uint8Array): void;
  /** MADV_POPULATE_WRITE of the range on a native thread. */
  populate(offset: number, length: number): Promise<void>;
  /** SHA-256 would be JS's business: this is a 64-bit content hash of the range made on a native thread, for tests and bench. */
  hash(offset: number, length: number): Promise<bigint>;
  /** Resident set of this memfd in bytes (what Pss accounting must subtract). */
  resident(): number;
  /** Unmaps and detaches the windows. */
  close(): void;
}
export interface MemorySlice {
  readonly ram: GuestRam;
  readonly offset: number;
  readonly size: number;
}

/** mmap of a device fd (a BAR, a dirty ring). */
export interface HostMapping {
  readonly size: number;
  /** A view of (at most the first 1 GiB of) it for tests and trapped access; detached by unmap(). */
  readonly view: ArrayBuffer;
  unmap(): void;
}

/** One bit a 4 KiB page of guest RAM, by RAM offset, in native memory. */
export interface PageBitmap {
  readonly pages: number;
  /** Population count. */
  readonly count: number;
  set(firstPage: number, pages: number): void;
  clear(firstPage: number, pages: number): void;
  test(page: number): boolean;
  fill(): void;
  zero(): void;
  or(other: PageBitmap): void;
  /** ORs `other` in, clears it, and gives how many bits it had, all in one pass. Another bitmap of the same size. */
  take(other: PageBitmap): number;
  copyFrom(other: PageBitmap): void;
  /** ORs bits that describe granules of `granule` bytes starting at RAM offset `start`; granule is a power of two >= 512. */
  orBytes(start: number, bits: Uint8Array, granule: number): void;
  /** ORs `bits` bits read by pread at `offset` of a device fd, each a granule of `granule` bytes from RAM offset `start` on (a power of two
   *  >= 512). Bits that lie outside of the bitmap are ignored. Read on a native thread, ORed when all are there; a short read is
   *  SysError EIO. */
  orFrom(source: { fd: number; offset: number; bits: number }, start: number, granule: number): Promise<void>;
  /** Runs of set bits as [firstPage, pages] pairs, at most `limit` runs, from `fromPage`. For tests and cold paths. */
  runs(fromPage: number, limit: number): Float64Array;
  close(): void;
}

/** Fixed by the size of Uint8Array views over kvm_run. See linux/kvm.h, struct kvm_run. */
export interface Vcpu {
  readonly fd: number;
  readonly index: number;
  readonly threadId: number;
  /** The mmapped kvm_run: read and written by exits.ts through one DataView. */
  readonly run: ArrayBuffer;
}

export interface VcpuLoopHandlers {
  /** A vCPU waits for an answer; its kvm_run holds the exit. true: answered, re-enter KVM_RUN. false: leave it parked in this exit
   *  (resume(index) re-enters). Posted writes of all vCPUs have been replayed before this is called. */
  exit(index: number): boolean;
  /** A posted write, in order. `range` is the number addFast gave. */
  posted(range: number, offset: number, width: number, value: number): void;
  /** KVM_RUN itself failed (errno other than EINTR/EAGAIN). The vCPU is parked. */
  failed(index: number, errno: number): void;
}

/** The vCPU threads of one machine, their exit mailbox and the fast path. One per machine. */
export interface VcpuLoop {
  /** KVM_CREATE_VCPU + mmap of kvm_run + a native thread, parked. Throws SysError. */
  addVcpu(vmFd: number, index: number, runSize: number): Vcpu;
  /** Lets all vCPUs run; any number of times. Throws while a pause is under way; nothing when they run already. */
  start(): void;
  /** Kicks all; resolves when each thread is parked and has finished its outstanding PIO/MMIO (one KVM_RUN with immediate_exit after
   *  the answer; KVM api.rst, KVM_EXIT_IO). exit() goes on being called for those still waiting meanwhile. The ring is drained.
   *  An exit that was answered false is completed too, with what lies in its kvm_run: start() goes on behind it. May be called inside
   *  a handler. Rejects with SysError ECANCELED when close() overtakes it. */
  pause(): Promise<void>;
  /** Re-enters one vCPU that exit() left parked (or whose KVM_RUN failed). Nothing when it runs. */
  resume(index: number): void;
  /** Fast window over [base, base+size), at most 16 MiB when it has reads or posts. These are offsets; shadow may be shared with JS (its memory
   *  is read by the thread). `file` (a duplicate of its fd is used) takes the other accesses, but those that touch `except` (at most 16 ranges). */
  addFast(
    space: 'pio' | 'mmio',
    base: number,
    size: number,
    window: {
      shadow: Uint8Array | null;
      reads: readonly number[];
      posts: readonly number[];
      file: { fd: number; offset: number; except: readonly { start: number; length: number }[] } | null;
    },
  ): number;
  removeFast(range: number): void;
  /** Replays what is in the ring now. */
  drainPosted(): void;
  /** `passed`: to a window's file. */
  readonly stats: {
    readonly exits: number;
    readonly fastReads: number;
    readonly posted: number;
    readonly passed: number;
  };
  /** Stops and joins all threads, closes the vCPU fds. Idempotent; may be called inside a handler. */
  close(): Promise<void>;
}

/** What one pass of RAM sending did: `pages` had contents, `zeroPages` had none, `bytes` is what both took in the stream. */
export interface SentPages {
  readonly pages: number;
  readonly zeroPages: number;
  readonly bytes: number;
}

/** A part of one chunk of device state: bytes of a mapped window, of an fd by pread/pwrite, or (small, a header) of JS. */
export type ChunkPiece =
  | { readonly mapping: HostMapping; readonly offset: number; readonly length: number }
  | { readonly fd: number; readonly offset: number; readonly length: number }
  | { readonly bytes: Uint8Array };

/**
 * One connected stream socket or pipe. A tx thread and an rx thread; operations queue and run in call order per direction.
 * CRC32C runs over every byte that is not page contents, per direction. After abort() everything pending rejects with SysError ECANCELED.
 */
export interface Channel {
  readonly fd: number;
  write(bytes: Uint8Array): Promise<void>;
  /** Exactly n bytes (n <= 16 MiB), or rejects with StreamError('… ended …'). */
  read(n: number): Promise<Uint8Array>;
  /** RAM records of QEMU's stream for the set pages of `bitmap` (clearing each bit before its page is read), u64 offset|flags and page
   *  contents; zero pages as ZERO records. Continues from page `from`; stops after `maxPages` set pages. No EOS. */
  sendPages(
    ram: GuestRam,
    bitmap: PageBitmap,
    block: string,
    options: { from: number; maxPages: number; bytesPerSecond: number },
  ): Promise<SentPages & { readonly next: number }>;
  /** Parses RAM records into `ram` up to and including EOS. Rejects with StreamError on an unknown block, flag or offset outside.
   *  `first`: a record header that was already read (its 8 bytes as bigint), or null. */
  receivePages(ram: GuestRam, block: string, first: bigint | null): Promise<SentPages>;
  /** data fd -> channel: per read() of at most 1 MiB one record: `tag` u64 BE, length u64 BE, bytes. */
  pumpFrom(fd: number, budget: number, tag: bigint): Promise<{ bytes: number; end: 'more' | 'drained' | 'end' }>;
  /** channel -> data fd, `length` bytes. Rejects with SysError('write(data fd)') when the driver refuses; the channel's bytes are consumed.
   *  `following`: then the bytes of the records of that tag that arrive right behind (5 ms at most), up to `budget` bytes in all; what is
   *  none is not read. Resolves with the bytes that went into the fd. */
  pumpTo(fd: number, length: number, following?: { tag: bigint; budget: number }): Promise<number>;
  /** pieces -> channel as one record (`tag` u64 BE, length of all u64 BE, bytes). A refused pread is SysError
   *  'pread(device region)': the channel goes on when all fd pieces take at most 1 MiB (they are read first), else its record had begun and
   *  it is broken. A record has 1 byte to 1 GiB, and at most 1024 pieces. */
  pumpPiecesFrom(pieces: readonly ChunkPiece[], tag: bigint): Promise<void>;
  /** channel -> pieces in order, as many bytes as they have in all; `bytes` pieces are filled when it resolves. Rejects with
   *  SysError('pwrite(device region)') when the driver refuses; the channel's bytes are consumed. Same limits; no read-only mapping. */
  pumpPiecesTo(pieces: readonly ChunkPiece[]): Promise<void>;
  readonly txCrc: number;
  readonly rxCrc: number;
  readonly txBytes: number;
  readonly rxBytes: number;
  /** Half-close: no more writes (FIN). */
  end(): Promise<void>;
  /** Unblocks and rejects everything pending, closes the socket. Idempotent. */
  abort(): void;
}

export interface SocketAddress {
  readonly family: 'inet' | 'inet6' | 'unix';
  readonly host: string;
  readonly port: number;
  readonly path: string;
}

/** What `traceProgram` looks for. The tables have one row after the other; 0xffffffff is "any" or, in `makers.at`, the call's result. */
export interface TraceRules {
  /** Files of interest, as /proc/PID/fd names them; the first row that fits gives a file's kind, a number of the caller's. */
  readonly paths: readonly { readonly prefix: string; readonly exact: boolean; readonly kind: number }[];
  /** Bits 8-15 of the ioctl numbers that matter. */
  readonly ioctlType: number;
  /** kind, request, feature, flags that must be set (of the u32 at byte 4), where the pointer is, how long what it points to is (0: u32 at a
   *  times b; 1: u32 at a; 2: u64 at a; 3: a bit for each of u64 at a / u64 at b), a, b, 1 if it is read after the call. */
  readonly pointers: Uint32Array;
  /** kind, request, feature, where the new fd is, its kind. */
  readonly makers: Uint32Array;
  /** request, bytes: arguments that do not begin with their own size. */
  readonly sizes: Uint32Array;
}

/** One call of a traced program, or 'inherit', 'recvmsg', 'pidfd_getfd' (a file arrived) and 'end' (a process: code, or -signal). */
export interface TracedCall {
  readonly call: string;
  readonly pid: number;
  readonly tid: number;
  /** Seconds since the start. */
  readonly at: number;
  readonly seconds: number;
  readonly fd: number;
  /** The same number for one open file, whatever fds it has. */
  readonly file: number;
  readonly kind: number;
  /** As the kernel returns it: -errno. */
  readonly result: number;
  /** false: the thread died in the call. */
  readonly answered: boolean;
  readonly path: string;
  readonly args: readonly bigint[];
  readonly before: Uint8Array | null;
  readonly after: Uint8Array | null;
  readonly payload: Uint8Array;
  readonly memory: readonly { readonly at: number; readonly when: 'before' | 'after'; readonly bytes: Uint8Array }[];
  readonly made: { readonly fd: number; readonly file: number; readonly kind: number } | null;
}

export interface ProgramTracer {
  readonly pid: number;
  /** Waits for calls, or for the end of the program and all that it started; `ended` is told alone, and only once. */
  next(): Promise<{
    readonly calls: readonly TracedCall[];
    readonly ended: { readonly code: number | null; readonly signal: number | null } | null;
  }>;
}

export interface KvmNode {
  /** ioctl(2) with a number or a struct. Returns its result; throws SysError(name ?? 'ioctl'). The struct is copied back into `arg`. */
  ioctl(name: string, fd: number, request: number, arg: number | Uint8Array, patches?: readonly Patch[]): number;
  /** The same on a thread of its own, for what may block (VFIO state changes, reset, DMA map, DMA-log START/REPORT). */
  ioctlAsync(
    name: string,
    fd: number,
    request: number,
    arg: number | Uint8Array,
    patches?: readonly Patch[],
  ): Promise<number>;
  /** hugePages: transparent huge pages at the first touch, where the host lets us (a tmpfs mount of our own needs CAP_SYS_ADMIN). */
  createRam(size: number, options: { hugePages: boolean; populate: boolean }): GuestRam;
  mapFd(fd: number, offset: number, size: number, writable: boolean): HostMapping;
  createBitmap(pages: number): PageBitmap;
  createVcpuLoop(handlers: VcpuLoopHandlers, options: { hotWindowUs: number }): VcpuLoop;
  /** eventfd2(EFD_CLOEXEC | EFD_NONBLOCK). */
  eventFd(): number;
  /** Adds 1. */
  eventSignal(fd: number): void;
  /** Reads and clears; 0n when nothing was there. */
  eventTake(fd: number): bigint;
  closeFd(fd: number): void;
  dupFd(fd: number): number;
  /** uv_poll for readability: the callback reads an eventfd's counter first. */
  watchEvent(fd: number, callback: (count: bigint) => void): { close(): void };
  /** uv_poll for readability of any fd; the callback reads it itself. */
  watchFd(fd: number, callback: () => void): { close(): void };
  connect(address: SocketAddress, timeoutMs: number): Promise<number>;
  listen(address: SocketAddress): number;
  /** The bound address, with the port that was chosen. */
  localAddress(fd: number): SocketAddress;
  /** Rejects with SysError ECANCELED after closeListener(listenFd), which alone may close what is being waited on. */
  accept(listenFd: number): Promise<number>;
  /** Closes a listener, and removes its socket file. */
  closeListener(listenFd: number): void;
  /** Takes the fd over: it is closed by abort(), or when the Channel is collected. */
  channel(fd: number): Channel;
  /** sendmsg/recvmsg with SCM_RIGHTS on a UNIX socket fd. recvFds never waits: SysError EAGAIN when there is nothing (see watchFd). */
  sendFds(socket: number, bytes: Uint8Array, fds: readonly number[]): void;
  recvFds(socket: number, into: Uint8Array, maxFds: number): { bytes: number; fds: number[] };
  pread(fd: number, offset: bigint | number, into: Uint8Array): number;
  pwrite(fd: number, offset: bigint | number, from: Uint8Array): number;
  /** Takes what KVM has put into a vCPU's dirty ring (a mapping of the vCPU's fd) from entry `next` (modulo its length) on, marks the
   *  pages in `bitmap` and the entries as taken (KVM_RESET_DIRTY_RINGS is the caller's). `banks`: triples of slot, first page in the
   *  bitmap, pages. Returns how many entries. */
  harvestDirtyRing(ring: HostMapping, next: number, bitmap: PageBitmap, banks: Float64Array): number;
  /** After a harvest: 0 when the ring is in step. Else KVM has written over entries that were not taken: gives how many entries to go on,
   *  and marks those in between as taken. Some pages are lost then. */
  rejoinDirtyRing(ring: HostMapping, next: number): number;
  /** The same on a thread of its own, for registers whose access makes a driver work (migration regions). */
  preadAsync(fd: number, offset: bigint | number, into: Uint8Array): Promise<number>;
  pwriteAsync(fd: number, offset: bigint | number, from: Uint8Array): Promise<number>;
  cpuCount(): number;
  /** Starts a program under ptrace, with our stdin, stdout and stderr. It dies with this process. Throws SysError of exec, ptrace or seccomp. */
  traceProgram(command: readonly string[], rules: TraceRules): ProgramTracer;
}

let loaded: KvmNode | null = null;

/** Loads build/Release/kvm_node.node (FERRY_ADDON names another build, which is how the sanitizer builds are tested). */
export function kvmNode(): KvmNode {
  if (loaded === null) {
    const require = createRequire(import.meta.url ?? __filename);
    const addon = require(process.env['FERRY_ADDON'] ?? '../build/Release/kvm_node.node') as KvmNode & {
      adoptErrors(sysError: typeof SysError, streamError: typeof StreamError): void;
    };
    addon.adoptErrors(SysError, StreamError);
    loaded = addon;
  }
  return loaded;
}
