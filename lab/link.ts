// The network link between the two hosts of a lab: a stream socket between the two QEMUs, 10.9.0.11 (host-a) and 10.9.0.12 (host-b).
// Called by lab/lab.ts and by tests of faults. Cutting it is silent, as a pulled cable is: no RST, no FIN.
import type { LabHost } from './host.ts';

export const LINK_ADDRESS = ['10.9.0.11', '10.9.0.12'] as const;

/** Takes the link down or up at both ends. */
export async function setLink(hosts: readonly LabHost[], up: boolean): Promise<void> {
  await Promise.all(hosts.map((host) => host.qmp.execute('set_link', { name: 'link-nic', up })));
}
