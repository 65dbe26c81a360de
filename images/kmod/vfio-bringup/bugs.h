/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What can be wrong with the device (bug=), and what may look wrong and is
 * not (odd=). Each bug is one changed line on a path that a real driver has;
 * the third column is the rule that it breaks, the fourth what is seen.
 *
 * Nothing that the VFIO core of Linux 6.12 enforces by itself is here: no fd
 * with an error, data_fd -1 at GET, argsz and flags, the shape of ranges and
 * page sizes of DMA logging. A checker that has only such rules finds none.
 */
#ifndef BRINGUP_BUGS_H
#define BRINGUP_BUGS_H

#define BRING_BUGS(X) \
/* abi d: states */ \
X(D_STATE_MASKED, 1, "states.range", "states 9 and 2^32-1 are taken for 1 and 7") \
X(D_STOP_COPY_BACK, 2, "states.blocked", "STOP_COPY to PRE_COPY and PRE_COPY_P2P is accepted") \
X(D_FD_INSIDE, 3, "states.fd", "PRE_COPY_P2P to STOP_COPY gives a second data fd") \
X(D_ARC_HANGS, 4, "states.hang", "STOP_COPY to STOP never returns") \
X(D_SIZE_WHILE_SAVING, 5, "data-size.any-state", "MIG_DATA_SIZE fails outside of a saving state") \
/* abi d: data fd, saving */ \
X(D_READ_AFTER, 6, "fd.after-session", "the old data fd still gives data") \
X(D_EOF_AFTER, 7, "fd.after-session", "the old data fd reads as ended instead of failing") \
X(D_NOMSG_AT_END, 8, "fd.end", "STOP_COPY ends with ENOMSG instead of 0") \
X(D_PRE_COPY_EOF, 9, "fd.pre-copy-end", "PRE_COPY without data reads 0 instead of ENOMSG") \
X(D_FAULT_LOSES, 10, "fd.fault", "a read into an unmapped page loses the bytes") \
X(D_ODD_READ, 11, "fd.sizes", "reads are cut down to whole words, one of 1 byte to 0") \
X(D_POLL_SILENT, 12, "fd.poll", "poll does not tell of data that has come in PRE_COPY") \
X(D_INFO_STOPPED, 13, "precopy-info.state", "PRECOPY_INFO succeeds in STOP_COPY") \
X(D_INITIAL_STAYS, 14, "precopy-info.initial", "initial_bytes never gets to zero") \
/* abi d: content */ \
X(D_RNG_LOST, 15, "content.roundtrip", "the rng is not in the stream") \
X(D_WINDOW_NOT_DIRTY, 16, "content.pre-copy-delta", "memory written through BAR0 in PRE_COPY is not sent again") \
X(D_SECOND_SESSION, 17, "content.second-session", "a second session leaves out what the first one sent") \
/* abi d: loading */ \
X(D_TRUNCATED, 18, "load.truncated", "a stream that ends early or is empty is accepted") \
X(D_CRC_IGNORED, 19, "load.corrupted", "a changed byte is accepted") \
X(D_OVERSIZED, 20, "load.oversized", "bytes behind the end are accepted") \
X(D_RETRY, 21, "load.retry", "after a refusal a second RESUMING to STOP succeeds") \
X(D_OTHER_SIZE, 22, "load.other-size", "data of a device with less memory is accepted") \
X(D_BAD_WARNS, 23, "kernel.health", "a bad record is a kernel warning") \
/* abi d: quiescence, interrupts, the rest of the device */ \
X(D_DMA_IN_STOP, 24, "stop.dma", "DMA goes on in STOP") \
X(D_DMA_IN_P2P, 25, "p2p.dma", "DMA to a peer goes on in the P2P states") \
X(D_IRQ_AFTER_STOP, 26, "stop.interrupt", "the interrupt of the last DMA may come after STOP") \
X(D_IRQ_LOST, 27, "interrupt.pending", "an interrupt that is pending at STOP is forgotten") \
X(D_CONFIG_STOPPED, 28, "device.config", "config space fails while the device is stopped") \
X(D_SET_IRQS_STOPPED, 29, "device.irqs", "SET_IRQS fails while the device is stopped") \
X(D_STAYS_HELD, 30, "states.running-again", "DMA does not go on when RUNNING is entered again") \
/* abi d: logging */ \
X(D_LOG_BEFORE_WRITE, 31, "log.race", "pages are logged before they are written: a report in between loses them") \
X(D_LOG_PAGE_END, 32, "log.precise", "the page of the byte behind the transfer is logged") \
X(D_LOG_ONE_RANGE, 33, "log.ranges", "only the first range is logged") \
X(D_LOG_TWICE, 34, "log.start-twice", "a second START succeeds") \
X(D_LOG_NO_START, 35, "log.report-unstarted", "REPORT without START succeeds") \
X(D_LOG_DROPPED_AT_STOP, 36, "log.stop-independent", "the log is dropped when the device stops") \
X(D_LOG_CLEARS_ALL, 37, "log.report-range", "REPORT clears pages outside of its range") \
/* abi d: reset, closing, leaks */ \
X(D_RESET_STATE, 38, "reset.running", "a reset does not lead out of ERROR") \
X(D_RESET_FD, 39, "reset.fd", "a data fd survives a reset") \
X(D_REOPEN_DATA, 40, "reopen.data", "the next user can read the previous one's memory") \
X(D_REOPEN_STATE, 41, "reopen.running", "the migration state survives the close") \
X(D_LEAK, 42, "kernel.leak", "a save session loses 64 KiB") \
/* abi d: seen with a second device only */ \
X(D_INSTANCE_BOUND, 43, "content.other-instance", "data names its instance, another one refuses it") \
X(D_INSTANCE_STATE, 44, "content.other-instance", "the rng is saved relative to the instance: another one gets another") \
X(D_P2P_NEW, 45, "p2p.new-dma", "DMA to a peer that is begun in a P2P state goes out") \
/* abi a */ \
X(A_STOP_RUNS, 101, "a.stop", "DMA goes on in STOP") \
X(A_STOP_LOGGING_RUNS, 102, "a.activate", "STOP and LOGGING to RUNNING does not activate") \
X(A_BAD_CONFIG, 103, "a.config-verdict", "SET_BUFFER of damaged config data succeeds") \
X(A_BAD_MEMORY, 104, "a.memory-verdict", "SET_BUFFER of damaged memory data succeeds") \
X(A_LAST_PAGE, 105, "a.memory-dirty", "the last dirty page of device memory is left out under LOGGING") \
X(A_BITMAP_START, 106, "a.bitmap-start", "start_addr is ignored, the bitmap begins at 0") \
X(A_PAGE_NR, 107, "a.page-nr", "page_nr beyond the bitmap region is cut instead of refused") \
X(A_CONFIG_STALE, 108, "a.config-whole", "config data is that of the first GET_BUFFER") \
X(A_INSTANCE_BOUND, 109, "a.other-instance", "config data names its instance, another one refuses it") \
/* abi b */ \
X(B_STATE_111, 201, "b.states", "the invalid state 111 is accepted") \
X(B_PARTIAL_NONE, 202, "b.pfns-partial", "NONE is answered though a later page is dirty") \
X(B_START_PFN, 203, "b.pfns-start", "the bitmap is shifted by one page") \
X(B_PAGE_SIZE, 204, "b.pfns-page-size", "page_size is ignored: pfns are of 4 KiB") \
X(B_COPIED_ABOVE, 205, "b.pfns-total", "copied_pfns is above total_pfns") \
X(B_STOP_RUNS, 206, "b.stop", "DMA goes on after the write of a stopped state returned") \
X(B_TRUNCATED, 207, "b.load-truncated", "data that ends early is accepted") \
X(B_INSTANCE_BOUND, 208, "b.other-instance", "data names its instance, another one refuses it") \
/* abi c */ \
X(C_PENDING_CONSUMES, 301, "c.pending-repeated", "each read of pending_bytes drops a chunk") \
X(C_STATE_101, 302, "c.states", "the invalid state 101 is accepted") \
X(C_RESERVED_BITS, 303, "c.preserved-bits", "bits 3 to 31 of device_state are lost") \
X(C_NARROW, 304, "c.access-width", "a field can be read in halves") \
X(C_STOP_RUNS, 305, "c.stop", "DMA goes on after the write of a stopped state returned") \
X(C_SHORT_CHUNK, 306, "c.chunk-atomic", "a chunk that was committed in part is accepted") \
X(C_TRUNCATED, 307, "c.load-truncated", "data that ends early is accepted") \
X(C_RESET_STATE, 308, "c.reset", "a reset does not lead out of 110") \
X(C_INSTANCE_BOUND, 309, "c.other-instance", "data names its instance, another one refuses it")

#define BRING_ODDS(X) \
X(P2P_RAM, 1, "DMA to RAM goes on in the P2P states") \
X(LOG_64K, 2, "the log has pages of 64 KiB, and START says so") \
X(ONE_BYTE_READS, 3, "a read of the data fd gives one byte") \
X(SLOW_ARCS, 4, "an arc takes two seconds") \
X(FAIL_TO_ERROR, 5, "data that is refused leads to ERROR") \
X(OVER_REPORT, 6, "all of the range is reported as dirty, always") \
X(NO_POLL, 7, "the data fd has no poll") \
X(SIZE_CHANGES, 8, "each session's stream has another length") \
X(SHORT_WRITES, 9, "a write to the data fd takes at most 1000 bytes") \
X(NO_PRE_COPY_DATA, 10, "PRE_COPY has next to nothing: the identity is all of initial_bytes, dirty_bytes stays 0 (b, c: pending_bytes is 0)") \
X(PFNS_ALL, 11, "b: copied_pfns is always ALL") \
X(MOVING_OFFSET, 12, "b, c: data_offset is another for each chunk")

#define BRING_BUG_ENUM(name, number, rule, what)	BUG_##name = number,
#define BRING_ODD_ENUM(name, number, what)		ODD_##name = number,
enum bring_bug { BRING_BUGS(BRING_BUG_ENUM) };
enum bring_odd { BRING_ODDS(BRING_ODD_ENUM) };

#endif
