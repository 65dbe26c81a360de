// vmm/object-syntax.ts: what users write after --object, as QEMU takes it, and one line with a remedy for what cannot be.
import { describe, expect, it } from 'vitest';
import { VmmError } from '../../../native/errno.ts';
import { parseObjects } from '../../../vmm/object-syntax.ts';

function refusal(...texts: string[]): string {
  try {
    parseObjects(texts);
  } catch (error) {
    expect(error).toBeInstanceOf(VmmError);
    expect((error as VmmError).exitCode).toBe(2);
    expect((error as VmmError).message).not.toContain('\n');
    return (error as VmmError).message;
  }
  throw new Error('was not refused');
}

describe('--object', () => {
  it('iommufd,id=ID[,fd=N] and JSON say the same', () => {
    expect(parseObjects(['iommufd,id=iommufd0', 'iommufd,id=io.1,fd=12'])).toEqual([
      { id: 'iommufd0', fd: null },
      { id: 'io.1', fd: 12 },
    ]);
    expect(parseObjects(['{"qom-type":"iommufd","id":"a","fd":"12"}', '{"qom-type":"iommufd","id":"b"}'])).toEqual([
      { id: 'a', fd: 12 },
      { id: 'b', fd: null },
    ]);
  });

  it.each([
    [['memory-backend-ram,id=m'], /'memory-backend-ram' is no object type here; there is: iommufd,id=ID\[,fd=N\]/],
    [['id=iommufd0'], /Parameter 'qom-type' is missing/],
    [['iommufd'], /Parameter 'id' is missing: write --object iommufd,id=iommufd0/],
    [['iommufd,id=0'], /expects an identifier/],
    [['iommufd,id=on'], /a word of iommufd= itself/],
    [['iommufd,id=a,share=on'], /Property 'iommufd.share' not found; it has: id, fd/],
    [['iommufd,id=a,fd=2'], /fd=2 of --object.*3 or more/],
    [['iommufd,id=a,fd=name'], /fd=name of --object/],
    [['iommufd,id=a,id=b'], /--object iommufd,id=a,id=b: 'id' is given twice/],
    [['iommufd,id=a', 'iommufd,id=a'], /Duplicate object ID 'a'/],
    [['{"qom-type":'], /--object .*this is not JSON; write {"qom-type"/],
  ])('%j is refused', (texts, words) => expect(refusal(...texts)).toMatch(words));
});
