// Which generation of VFIO's migration interface a device speaks, found by asking and never guessed. Called by open-group.ts for a guest's
// device and by probe.ts for `ferry vfio info`, while the device is idle. Every fact that was used is told as a sentence.
// v2 is a feature; the older ones are regions that are told apart by type, subtype, size and what is in them (docs/migration-abis.md).
import { VFIO_DEVICE_FEATURE_MIGRATION } from '../../../native/abi/vfio.ts';
import {
  VFIO_REGION_SUBTYPE_DEVICE_STATE_DATA_CONFIG,
  VFIO_REGION_SUBTYPE_MIGRATION,
  VFIO_REGION_TYPE_MIGRATION_V1,
  VFIO_REGION_TYPE_MIGRATION_V7,
  vfio_device_migration_info_v1,
  vfio_device_migration_info_v7,
} from '../../../native/abi/vfio-legacy.ts';
import { VmmError } from '../../../native/errno.ts';
import { type RegionPlace, readDeviceInfo, readRegions } from '../kernel-device.ts';
import type { KernelDoor } from '../kernel-door.ts';
import type { VfioMigrationPort } from '../transport.ts';
import { DeviceStateRegions } from './device-state-regions.ts';
import { probeFeature } from './feature-arg.ts';
import { openFeatureV2, STATE_DEADLINE_MS, word } from './feature-v2.ts';
import { probeStateRegions } from './probe-regions.ts';
import { askDataOffset } from './probe-v1.ts';
import { RegionDoor } from './region-door.ts';
import { openRegionV1 } from './region-v1.ts';
import { openRegionV7 } from './region-v7.ts';

/** What x-migration-abi may say. */
export const ABI_CHOICES = ['auto', 'v2', 'v1', 'v7', 'regions', 'off'] as const;
export type AbiChoice = (typeof ABI_CHOICES)[number];

export interface AbiWish {
  readonly abi: AbiChoice;
  /** Chunks larger than the data section are committed in pieces (v1, v7). */
  readonly split: boolean;
}

export const ANY_ABI: AbiWish = { abi: 'auto', split: false };

export interface AbiHost {
  readonly door: KernelDoor;
  readonly fd: number;
  readonly name: string;
  /** VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION: kernels from 5.8 on, which is when v1 came. */
  readonly containerTracks: boolean;
}

export interface FoundMigration {
  /** null: none was found, or none is wanted. */
  readonly port: VfioMigrationPort | null;
  readonly facts: readonly string[];
  /** Takes down what is mapped of the device. Before the fd's group is left. */
  close(): void;
}

type Port = Pick<FoundMigration, 'port' | 'close'>;

/** Throws VmmError when another interface is asked for than the device has. */
export async function openMigration(host: AbiHost, wish: AbiWish): Promise<FoundMigration> {
  const probe = new AbiProbe(host, wish);
  const found = await probe.run();
  if (found === null && wish.abi !== 'auto' && wish.abi !== 'off') {
    throw new VmmError(
      'migration-abi',
      `${host.name}: x-migration-abi=${wish.abi} is not what this device speaks (found: ${probe.facts.join('; ')}): leave it away`,
    );
  }
  return { port: found?.port ?? null, facts: probe.facts, close: () => found?.close() };
}

class AbiProbe {
  readonly facts: string[] = [];
  readonly #host: AbiHost;
  readonly #wish: AbiWish;

  constructor(host: AbiHost, wish: AbiWish) {
    this.#host = host;
    this.#wish = wish;
  }

  async run(): Promise<Port | null> {
    if (this.#wish.abi === 'off') {
      this.facts.push('migration is off by x-migration-abi=off');
      return null;
    }
    const v2 = await this.#v2();
    if (v2 !== null && this.#wants('v2')) return { port: v2, close: () => undefined };
    if (this.#wish.abi === 'v2') return null;
    const info = readDeviceInfo(this.#host.door, this.#host.fd);
    const regions = readRegions(this.#host.door, this.#host.fd, info.regions);
    this.facts.push(info.isPci ? 'it is a PCI device' : 'it is no PCI device, whose type 2 may be anything (CCW)');
    for (const { index, type, size } of regions) {
      if (type !== null) {
        this.facts.push(`region ${index} has type ${type.type}, subtype ${type.subtype} and ${size} bytes`);
      }
    }
    return (
      (info.isPci ? ((await this.#stateRegions(regions)) ?? (await this.#v7(regions))) : null) ??
      (await this.#v1(regions, info.isPci))
    );
  }

  #wants(abi: AbiChoice): boolean {
    return this.#wish.abi === 'auto' || this.#wish.abi === abi;
  }

  async #v2(): Promise<VfioMigrationPort | null> {
    const { door, fd, name } = this.#host;
    const has = probeFeature({ door, fd }, VFIO_DEVICE_FEATURE_MIGRATION, 'get');
    const port = has ? openFeatureV2(door, fd, name) : null;
    this.facts.push(
      !has
        ? 'it has no VFIO_DEVICE_FEATURE_MIGRATION'
        : `it has VFIO_DEVICE_FEATURE_MIGRATION${port === null ? ', without STOP_COPY' : ''}`,
    );
    await port?.look();
    return port;
  }

  async #stateRegions(regions: readonly RegionPlace[]): Promise<Port | null> {
    const type = VFIO_REGION_TYPE_MIGRATION_V7;
    if (!this.#wants('regions') || find(regions, type, VFIO_REGION_SUBTYPE_DEVICE_STATE_DATA_CONFIG) === null)
      return null;
    const found = await this.#asked(() => probeStateRegions(regions, (region) => this.#open(region), this.facts));
    return found === null ? null : { port: new DeviceStateRegions(found.regions), close: found.close };
  }

  /** Type 2, subtype 1 alone, larger than its registers. device_state is not asked: RUNNING is 1, as a version is. */
  async #v7(regions: readonly RegionPlace[]): Promise<Port | null> {
    const type = VFIO_REGION_TYPE_MIGRATION_V7;
    const region = find(regions, type, VFIO_REGION_SUBTYPE_MIGRATION);
    if (region === null || !this.#wants('v7')) return null;
    if (find(regions, type, VFIO_REGION_SUBTYPE_DEVICE_STATE_DATA_CONFIG) !== null) return null;
    if (region.size <= vfio_device_migration_info_v7.size) {
      this.facts.push(`region ${region.index} is too small for v7's registers and data`);
      return null;
    }
    this.facts.push('type 2 has subtype 1 and no subtype 2, and room for data behind 64 bytes: v7');
    return this.#port(region, openRegionV7);
  }

  /** Type 3, subtype 1: v1, where nothing speaks for v7 (later drafts of it were there). */
  async #v1(regions: readonly RegionPlace[], isPci: boolean): Promise<Port | null> {
    const region = find(regions, VFIO_REGION_TYPE_MIGRATION_V1, VFIO_REGION_SUBTYPE_MIGRATION);
    if (region === null) return null;
    if (region.size <= vfio_device_migration_info_v1.size) {
      this.facts.push(`region ${region.index} is too small for v1's registers and data`);
      return null;
    }
    if (this.#wish.abi === 'v1') return this.#port(region, openRegionV1);
    if (!this.#wants('v7') && !this.#wants('v1')) return null;
    const mayBeV7 = isPci && region.size > vfio_device_migration_info_v7.size;
    const door = this.#open(region);
    const sure = mayBeV7 && (await this.#asked(() => askDataOffset(door, this.facts))) === true;
    const isV7 = mayBeV7 && !sure && (this.#wish.abi === 'v7' || !this.#host.containerTracks);
    this.facts.push(isV7 ? `${this.#whyV7()}: v7` : 'type 3, subtype 1: v1');
    if (!this.#wants(isV7 ? 'v7' : 'v1')) return null;
    return this.#port(region, isV7 ? openRegionV7 : openRegionV1);
  }

  #whyV7(): string {
    if (this.#wish.abi === 'v7') return 'x-migration-abi=v7 says so';
    return 'the container has no dirty tracking, so the kernel is older than v1';
  }

  async #port(
    region: RegionPlace,
    open: (door: RegionDoor, split: boolean) => Promise<VfioMigrationPort>,
  ): Promise<Port | null> {
    const door = this.#open(region);
    const port = await this.#asked(() => open(door, this.#wish.split));
    if (port === null) return null;
    this.facts.push(`its device_state is ${word(port.state)}`);
    return { port, close: () => door.close() };
  }

  /** A region that cannot be read is none of ours: a device is not kept from a guest because of it. */
  async #asked<T>(ask: () => Promise<T>): Promise<T | null> {
    try {
      return await ask();
    } catch (error) {
      if (!(error instanceof VmmError) || (error.code !== 'vfio-region' && error.code !== 'deadline')) throw error;
      this.facts.push(error.message.replace(`${this.#host.name}: `, ''));
      return null;
    }
  }

  #open(region: RegionPlace): RegionDoor {
    const { door, fd, name } = this.#host;
    return new RegionDoor({ door, fd, name, region, deadlineMs: STATE_DEADLINE_MS });
  }
}

export function find(regions: readonly RegionPlace[], type: number, subtype: number): RegionPlace | null {
  return regions.find((region) => region.type?.type === type && region.type.subtype === subtype) ?? null;
}
