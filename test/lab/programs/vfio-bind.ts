// Runs inside a lab host: binds a device, gives it back, and binds it again, on the real sysfs. argv: PCI address.
import { bindDevice, listRecords, unbindDevice, writeSysfs } from '../../../devices/vfio/bind.ts';
import { HOST_PATHS } from '../../../devices/vfio/kernel-door.ts';

const bdf = process.argv[2] ?? '';
const host = { paths: HOST_PATHS, write: writeSysfs };
const bound = bindDevice(host, bdf).driver;
const restored = unbindDevice(host, bdf).driver;
const left = listRecords(HOST_PATHS);
const again = bindDevice(host, bdf).driver;
console.log(JSON.stringify({ bound, restored, left, again }));
