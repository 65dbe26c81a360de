// Runs inside a lab host: QEMU's edu through devices/vfio, without a guest. Prints one JSON line of what it saw; the test judges it.
// argv: PCI address. edu's registers: QEMU docs/specs/edu.rst. A DMA takes 100 ms; its last usable byte is 4094.
import { setTimeout as sleep } from 'node:timers/promises';
import { HOST_PATHS } from '../../../devices/vfio/kernel-door.ts';
import { VfioContainer } from '../../../devices/vfio/open-group.ts';
import { kvmNode } from '../../../native/addon.ts';
import { BUFFER, DMA_BYTES, EDU, Edu } from './edu.ts';

const MIB = 2 ** 20;
const CONFIG = 7;
const INTX = 0;
const MSI = 1;
const addon = kvmNode();

async function eventOf(fd: number): Promise<bigint> {
  for (let i = 0; i < 400; i++) {
    const count = addon.eventTake(fd);
    if (count > 0n) return count;
    await sleep(5);
  }
  return 0n;
}

const ram = addon.createRam(16 * MIB, { hugePages: false, populate: false });
const ranges = [{ gpa: 0, size: ram.size, slice: { ram, offset: 0, size: ram.size } }];
const kvmVfio = { add: () => {}, remove: () => {} };
const memory = { ranges, read: () => false, write: () => false };
const container = new VfioContainer({
  door: addon,
  paths: HOST_PATHS,
  host: { ram, memory, kvmVfio },
  emulated: false,
});
const device = await container.open(process.argv[2] ?? '');
const edu = new Edu(device);
const seen: Record<string, unknown> = {
  regions: device.info.regions.filter((region) => region.size > 0),
  irqs: device.info.irqs,
  canReset: device.info.canReset,
  migration: device.migration !== null,
  dmaLog: device.dmaLog !== null,
  iovaRanges: container.dma.iovaRanges,
};

// Memory decode off: the read must fail, not hang or answer.
device.writeRegion(CONFIG, 4, Uint8Array.of(0, 0));
try {
  edu.read(EDU.id);
  seen['decodeOff'] = 'answered';
} catch (error) {
  seen['decodeOff'] = (error as Error).name;
}
device.writeRegion(CONFIG, 4, Uint8Array.of(6, 0));
seen['id'] = edu.read(EDU.id);
edu.write(EDU.live, 0x1234);
seen['live'] = edu.read(EDU.live);
const mapping = device.mapArea(0, { start: 0, length: 0x1000 });
// edu answers aligned dwords only: a DataView may read byte by byte.
seen['mapped'] = mapping === null ? null : new Uint32Array(mapping.view)[EDU.id / 4];
mapping?.unmap();

const event = addon.eventFd();
const resample = addon.eventFd();
device.irqs.trigger(INTX, 0, [event]);
device.irqs.unmaskBy(INTX, 0, resample);
seen['factorial'] = await edu.factorial(5);
const first = await eventOf(event);
// Masked by the kernel while it stands: no second one before the resample, though edu still asserts.
await sleep(50);
const whileMasked = addon.eventTake(event);
addon.eventSignal(resample);
const again = await eventOf(event);
const status = edu.acknowledge();
addon.eventSignal(resample);
await sleep(50);
seen['intx'] = {
  first: Number(first),
  whileMasked: Number(whileMasked),
  again: Number(again),
  status,
  quiet: Number(addon.eventTake(event)),
};
device.irqs.disable(INTX);

seen['msiResult'] = device.irqs.trigger(MSI, 0, [event]);
await edu.factorial(6);
seen['msi'] = { count: Number(await eventOf(event)), status: edu.acknowledge() };
device.irqs.disable(MSI);

const pattern = Uint8Array.from({ length: DMA_BYTES }, (_, i) => (i * 7 + 3) & 0xff);
ram.copyIn(0x5000, pattern);
const dirty = container.dma.dirty;
const bitmap = addon.createBitmap(ram.size / 4096);
await dirty?.start();
await edu.dma(0x5000n, BUFFER, false);
await edu.dma(BUFFER, 0x9000n, true);
const back = new Uint8Array(DMA_BYTES);
ram.copyOut(0x9000, back);
seen['dmaEqual'] = Buffer.compare(back, pattern) === 0;
await dirty?.report(ranges[0]!, bitmap);
seen['containerPages'] = [bitmap.count, bitmap.pages];
// What is taken out while it is tracked tells its pages; mapped again, it is reached again.
const gone = addon.createBitmap(ram.size / 4096);
await dirty?.unmap?.(ranges[0]!, gone);
seen['unmapped'] = [gone.count, gone.pages];
ram.copyIn(0x9000, new Uint8Array(DMA_BYTES));
await container.dma.map(ranges[0]!);
await edu.dma(BUFFER, 0x9000n, true);
ram.copyOut(0x9000, back);
seen['mappedAgain'] = Buffer.compare(back, pattern) === 0;
await dirty?.stop();
await device.close();
seen['closed'] = true;
console.log(JSON.stringify(seen));
