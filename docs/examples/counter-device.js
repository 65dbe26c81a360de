// A PCI device that counts, and interrupts at a limit: ferry run --plugin docs/examples/counter-device.js --device counter,step=2 ...
// BAR 0: 0x0 signature, 0x4 count (a write adds value * step), 0x8 limit, 0xc interrupts so far.
const SIGNATURE = 0x544e4f43; // "CONT"
const POWER_ON = { count: 0, limit: 0xffffffff, interrupts: 0 };
const isRegister = (value) => Number.isInteger(value) && value >= 0 && value <= 0xffffffff;

export default ({ createPciFunction, StateError }) => ({
  name: 'counter',
  help: 'counts what is written to it and interrupts at a limit (the example of docs/plugins.md)',
  properties: { step: { kind: 'number', required: false, help: 'what a write of 1 adds (default 1)' } },
  create(host, id, { step = 1 }) {
    let now = { ...POWER_ON };
    const add = (value) => {
      const before = now.count;
      now.count = (before + value * step) >>> 0;
      if (before >= now.limit || now.count < now.limit) return;
      now.interrupts++;
      pci.raise(0);
    };
    const read = (offset) => [SIGNATURE, now.count, now.limit, now.interrupts][offset / 4] ?? 0;
    const write = (offset, _width, value) => {
      if (offset === 0x4) add(value);
      if (offset === 0x8) now.limit = value >>> 0;
    };
    const load = (saved) => {
      const { count, limit, interrupts, step: there } = saved ?? {};
      if (![count, limit, interrupts].every(isRegister)) throw new StateError(`${id}: three registers wanted`);
      if (there !== step) throw new StateError(`${id}: step=${there} at the source, step=${step} here`);
      now = { count, limit, interrupts };
    };
    const pci = createPciFunction({
      ...{ host, id, type: 'counter', vendorId: 0x1b36, deviceId: 0x10ff, classCode: 0xff0000 },
      bars: [{ index: 0, kind: 'mem32', size: 4096, read, write }],
      interrupts: { kind: 'msi', count: 1 },
      state: { version: 1, save: () => ({ ...now, step }), load },
      reset: () => {
        now = { ...POWER_ON };
      },
    });
    return pci;
  },
});
