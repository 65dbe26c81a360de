// The migration room as control sees it, handed in by cli so that control can be tested with a fake. Types only.
import type { Incoming, MigrateOptions, Migration, ReceiveHost } from '../migration/api.ts';
import type { Channel } from '../native/addon.ts';
import type { Machine } from '../vmm/api.ts';

export interface PeerListener {
  /** The URI that a source can use, with the port that was chosen. */
  readonly uri: string;
  accept(): Promise<Channel>;
  close(): void;
}

export interface MigrationDoor {
  /** Throws VmmError for a URI that is none; rejects when nobody answers. */
  connect(uri: string): Promise<Channel>;
  listen(uri: string): Promise<PeerListener>;
  migrateTo(machine: Machine, peer: Channel, options: MigrateOptions): Migration;
  receiveFrom(peer: Channel, host: ReceiveHost): Incoming;
}
