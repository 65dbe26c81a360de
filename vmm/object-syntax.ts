// QEMU's -object syntax, of which there is one type here: `iommufd,id=ID[,fd=N]`. Called by cli for `ferry run` and `ferry receive`; pure.
// QEMU: `-object iommufd,help`
import { IOMMUFD_WORDS, type IommufdObject } from '../devices/vfio/open-device.ts';
import { VmmError } from '../native/errno.ts';
import { judgeId } from './device-syntax.ts';
import { parseKeyValues } from './key-values.ts';

const OBJECT = { option: '--object', first: 'qom-type', code: 'bad-object' };

export function parseObjects(texts: readonly string[]): IommufdObject[] {
  const objects: IommufdObject[] = [];
  for (const text of texts) {
    const object = judge(text);
    if (objects.some(({ id }) => id === object.id)) {
      throw refuse(`Duplicate object ID '${object.id}'; give each --object an id= of its own`);
    }
    objects.push(object);
  }
  return objects;
}

function judge(text: string): IommufdObject {
  const raw = parseKeyValues(text, OBJECT);
  const type = raw.get('qom-type');
  if (type === undefined) throw refuse(`--object: Parameter 'qom-type' is missing; write iommufd,id=ID[,fd=N]`);
  if (type !== 'iommufd') throw refuse(`'${type}' is no object type here; there is: iommufd,id=ID[,fd=N]`);
  for (const key of raw.keys()) {
    if (!['qom-type', 'id', 'fd'].includes(key)) throw refuse(`Property 'iommufd.${key}' not found; it has: id, fd`);
  }
  const id = raw.get('id');
  if (id === undefined) throw refuse(`Parameter 'id' is missing: write --object iommufd,id=iommufd0`);
  const judged = judgeId(id);
  if (IOMMUFD_WORDS.includes(judged)) {
    throw refuse(`id=${judged} of --object is a word of iommufd= itself; give it another, for example iommufd0`);
  }
  const fd = raw.get('fd');
  return { id: judged, fd: fd === undefined ? null : judgeFd(fd) };
}

/** Names of fds, which QEMU's monitor gives, are not there: an inherited fd has a number. */
function judgeFd(value: string | number | boolean): number {
  const fd = /^\d+$/.test(String(value)) ? Number(value) : Number.NaN;
  if (Number.isSafeInteger(fd) && fd > 2) return fd;
  throw refuse(
    `fd=${value} of --object: the number of an open /dev/iommu is wanted, 3 or more (0 to 2 are the console's)`,
  );
}

function refuse(message: string): VmmError {
  return new VmmError('bad-object', message);
}
