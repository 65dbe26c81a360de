// What the native tracer has to know of VFIO, made from the request tables: which files matter, which memory an ioctl points to, which ioctls
// make fds. Given to KvmNode.traceProgram by foreign.ts. Pure.
import { join } from 'node:path';
import { VFIO_DEVICE_FEATURE, VFIO_TYPE } from '../../../native/abi/vfio.ts';
import type { TraceRules } from '../../../native/addon.ts';
import type { HostPaths } from '../kernel-door.ts';
import { CONTAINER_REQUESTS, GROUP_REQUESTS } from './container-requests.ts';
import { DATA_REQUESTS, DEVICE_REQUESTS } from './device-requests.ts';
import { FEATURES } from './features.ts';
import { IOMMUFD_REQUESTS } from './iommufd-requests.ts';
import type { FdKind, Pointer, Request } from './request.ts';
import { DEVICE_INODE } from './traced-file.ts';

const ANY = 0xffffffff;
/** GET_DEVICE_FD's name: a PCI address, or an mdev's uuid. */
const TEXT_BYTES = 64;

export const KIND_NUMBERS: Readonly<Record<FdKind, number>> = {
  other: 0,
  container: 1,
  group: 2,
  device: 3,
  data: 4,
  iommufd: 5,
};

const TABLES: readonly (readonly [FdKind, readonly Request[]])[] = [
  ['device', DEVICE_REQUESTS],
  ['data', DATA_REQUESTS],
  ['group', GROUP_REQUESTS],
  ['container', CONTAINER_REQUESTS],
  ['iommufd', IOMMUFD_REQUESTS],
  ['iommufd', CONTAINER_REQUESTS],
];

export function kindByNumber(number: number): FdKind {
  return (Object.keys(KIND_NUMBERS) as FdKind[]).find((kind) => KIND_NUMBERS[kind] === number) ?? 'other';
}

export function tracerRules(paths: HostPaths): TraceRules {
  const file = (kind: FdKind, prefix: string, exact: boolean) => ({ prefix, exact, kind: KIND_NUMBERS[kind] });
  return {
    paths: [
      file('container', join(paths.dev, 'vfio/vfio'), true),
      file('device', join(paths.dev, 'vfio/devices/'), false),
      file('group', join(paths.dev, 'vfio/'), false),
      file('iommufd', join(paths.dev, 'iommu'), true),
      file('device', DEVICE_INODE, true),
    ],
    ioctlType: VFIO_TYPE,
    pointers: Uint32Array.from(pointerRows().flat()),
    makers: Uint32Array.from(makerRows().flat()),
    sizes: Uint32Array.from(sizeRows().flat()),
  };
}

function pointerRows(): number[][] {
  const row = (kind: FdKind, request: number, feature: number, pointer: Pointer): number[] => {
    const { at, flags, when } = pointer;
    return [KIND_NUMBERS[kind], request, feature, flags, at, ...lengthColumns(pointer), when === 'after' ? 1 : 0];
  };
  return [
    ...TABLES.flatMap(([kind, table]) =>
      table.flatMap(({ request, pointers }) => pointers.map((pointer) => row(kind, request, ANY, pointer))),
    ),
    ...FEATURES.flatMap(({ feature, pointers }) =>
      pointers.map((pointer) => row('device', VFIO_DEVICE_FEATURE, feature, pointer)),
    ),
  ];
}

/** native/src/tracer.h, PointedLength */
function lengthColumns({ length }: Pointer): [number, number, number] {
  switch (length.kind) {
    case 'count':
      return [0, length.count, length.element.size];
    case 'size32':
      return [1, length.size, 0];
    case 'size64':
      return [2, length.size, 0];
    case 'bitmap':
      return [3, length.bytes, length.page];
  }
}

function makerRows(): number[][] {
  return [
    ...TABLES.flatMap(([kind, table]) =>
      table.flatMap(({ name, request, makes }) => {
        const made = KIND_NUMBERS[name === 'VFIO_GROUP_GET_DEVICE_FD' ? 'device' : 'other'];
        return makes === null ? [] : [[KIND_NUMBERS[kind], request, ANY, makes === 'result' ? ANY : makes, made]];
      }),
    ),
    ...FEATURES.flatMap(({ feature, makes }) =>
      makes === null ? [] : [[KIND_NUMBERS.device, VFIO_DEVICE_FEATURE, feature, makes, KIND_NUMBERS.data]],
    ),
  ];
}

function sizeRows(): number[][] {
  return TABLES.flatMap(([, table]) =>
    table.flatMap(({ request, argument }) => {
      if (argument.kind === 'int') return [[request, 4]];
      return argument.kind === 'text' ? [[request, TEXT_BYTES]] : [];
    }),
  );
}
