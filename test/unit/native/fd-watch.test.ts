// Eventfds and the watching of fds on the event loop.
import { describe, expect, it } from 'vitest';
import { kvmNode } from '../../../native/addon.ts';

const kvm = kvmNode();

describe('eventfd', () => {
  it('counts signals and takes them all at once', () => {
    const fd = kvm.eventFd();
    expect(kvm.eventTake(fd)).toBe(0n);
    kvm.eventSignal(fd);
    kvm.eventSignal(fd);
    expect(kvm.eventTake(fd)).toBe(2n);
    expect(kvm.eventTake(fd)).toBe(0n);
    kvm.closeFd(fd);
    expect(() => kvm.eventSignal(fd)).toThrow('write(eventfd): EBADF');
    expect(() => kvm.eventTake(fd)).toThrow('read(eventfd): EBADF');
    expect(() => kvm.closeFd(fd)).toThrow('close: EBADF');
  });

  it('is the same counter through a duplicate', () => {
    const fd = kvm.eventFd();
    const copy = kvm.dupFd(fd);
    kvm.eventSignal(copy);
    kvm.closeFd(copy);
    expect(kvm.eventTake(fd)).toBe(1n);
    kvm.closeFd(fd);
    expect(() => kvm.dupFd(fd)).toThrow('EBADF');
    expect(() => kvm.dupFd(-1)).toThrow(RangeError);
  });
});

describe('watching', () => {
  it('gives an eventfd’s counter, read and cleared', async () => {
    const fd = kvm.eventFd();
    kvm.eventSignal(fd);
    kvm.eventSignal(fd);
    let watch = { close() {} };
    const count = await new Promise<bigint>((resolve) => {
      watch = kvm.watchEvent(fd, resolve);
    });
    expect(count).toBe(2n);
    expect(kvm.eventTake(fd)).toBe(0n);
    watch.close();
    watch.close();
    kvm.closeFd(fd);
  });

  it('is silent after close()', async () => {
    const fd = kvm.eventFd();
    let calls = 0;
    const watch = kvm.watchEvent(fd, () => {
      calls++;
    });
    kvm.eventSignal(fd);
    watch.close();
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(calls).toBe(0);
    expect(kvm.eventTake(fd)).toBe(1n);
    kvm.closeFd(fd);
  });

  it('may be closed by its own callback, and be put on again', async () => {
    const fd = kvm.eventFd();
    for (let round = 1; round <= 3; round++) {
      await new Promise<void>((resolve) => {
        const watch = kvm.watchFd(fd, () => {
          watch.close();
          expect(kvm.eventTake(fd)).toBe(1n);
          resolve();
        });
        kvm.eventSignal(fd);
      });
      await new Promise(setImmediate);
    }
    kvm.closeFd(fd);
  });

  it('refuses a second watch of one fd, takes one of its duplicate', () => {
    const fd = kvm.eventFd();
    const copy = kvm.dupFd(fd);
    const first = kvm.watchEvent(fd, () => {});
    expect(() => kvm.watchEvent(fd, () => {})).toThrow('uv_poll_init: EEXIST');
    const second = kvm.watchEvent(copy, () => {});
    first.close();
    second.close();
    kvm.closeFd(copy);
    kvm.closeFd(fd);
  });

  it('refuses what cannot be polled', () => {
    expect(() => kvm.watchFd(99999, () => {})).toThrow('uv_poll_init: EBADF');
    expect(() => kvm.watchEvent(-1, () => {})).toThrow(RangeError);
    expect(() => kvm.watchEvent(0, null as unknown as () => void)).toThrow(TypeError);
  });

  it('turns an exception of the callback into an uncaughtException', async () => {
    const fd = kvm.eventFd();
    const listeners = process.listeners('uncaughtException');
    process.removeAllListeners('uncaughtException');
    const caught = new Promise<Error>((resolve) => process.once('uncaughtException', resolve));
    const watch = kvm.watchEvent(fd, () => {
      throw new Error('from the callback');
    });
    kvm.eventSignal(fd);
    expect((await caught).message).toBe('from the callback');
    for (const listener of listeners) process.on('uncaughtException', listener);
    watch.close();
    kvm.closeFd(fd);
  });
});

describe('cpuCount', () => {
  it('is what the affinity mask allows', () => {
    expect(kvm.cpuCount()).toBeGreaterThanOrEqual(1);
  });
});
