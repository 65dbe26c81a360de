/* QEMU's teaching device "edu", as the guest sees it: registers through sysfs resource0, interrupts through uio_pci_generic, DMA into
 * memory that the kernel was told to leave alone (memmap=2M$0xe000000) through /dev/mem. Registers: QEMU docs/specs/edu.rst.
 * One thread goes round: liveness register, factorial with its interrupt, then one DMA out of the source page into the device's buffer
 * and one from there into the next page of the ring. The ring's pages are never written by the CPU; all of them are verified before
 * each new DMA, so also before the first one after a move. */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "workload.h"

#define KIND 2
#define RESERVED 0xe000000UL
#define RESERVED_SIZE (2UL << 20)
#define SOURCE 0 /* the first page there; the ring begins at the second */
#define BAR_SIZE (1UL << 20)
#define BUFFER 0x40000
#define WORDS (EDU_TRANSFER / 8)
/* It takes 100 ms by a timer; each look before that is an exit or two for nothing. */
#define TRANSFER_US 100000
#define PATIENCE_NS 20000000000ull

enum { ID = 0x00, LIVENESS = 0x04, FACTORIAL = 0x08, STATUS = 0x20, IRQ_STATUS = 0x24, IRQ_ACK = 0x64 };
enum { DMA_SOURCE = 0x80, DMA_DESTINATION = 0x88, DMA_COUNT = 0x90, DMA_COMMAND = 0x98 };
enum { COMPUTING = 0x01, RAISE = 0x80 };
enum { DMA_START = 1, DMA_FROM_DEVICE = 2 };

static volatile uint8_t *bar;
static uint8_t *reserved;
static int uio = -1, config = -1;
static unsigned ring;
static uint64_t *round_of; /* of each ring page; 0: nothing there yet */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static uint32_t get32(unsigned at) { return *(volatile uint32_t *)(bar + at); }
static void set32(unsigned at, uint32_t v) { *(volatile uint32_t *)(bar + at) = v; }
static void set64(unsigned at, uint64_t v) { *(volatile uint64_t *)(bar + at) = v; }
static uint64_t get64(unsigned at) { return *(volatile uint64_t *)(bar + at); }

/* ---- finding and opening ---- */

static int open_file(const char *directory, const char *name, int flags) {
  char path[400];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  return open(path, flags | O_CLOEXEC);
}

static int open_all(const char *sys) {
  write_text("/sys/bus/pci/drivers/uio_pci_generic/new_id", "1234 11e8");
  for (int tries = 0; uio < 0 && tries < 200; tries++) {
    uio = open("/dev/uio0", O_RDWR | O_CLOEXEC);
    if (uio < 0) sleep_us(10000);
  }
  config = open_file(sys, "config", O_RDWR);
  int resource = open_file(sys, "resource0", O_RDWR), mem = open("/dev/mem", O_RDWR | O_CLOEXEC);
  if (uio < 0 || config < 0 || resource < 0 || mem < 0) {
    complain("kind=start text=cannot-open uio=%d config=%d resource0=%d mem=%d", uio, config, resource, mem);
    return -1;
  }
  bar = mmap(NULL, BAR_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, resource, 0);
  reserved = mmap(NULL, RESERVED_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, mem, RESERVED);
  if (bar == MAP_FAILED || reserved == MAP_FAILED) {
    complain("kind=start text=cannot-map bar=%d reserved=%d", bar != MAP_FAILED, reserved != MAP_FAILED);
    return -1;
  }
  return 0;
}

/* ---- registers keep what was written ----
 * Three of them, looked at and written in different places of a turn: wherever the device loses its state, one of them is still to be
 * looked at. A move can come between the look at a register and its next write, and there it would not be missed. */

void expect_register(const char *name, uint64_t want, uint64_t found) {
  atomic_fetch_add(&counters.reg_checks, 1);
  if (found == want) return;
  atomic_fetch_add(&counters.reg_errors, 1);
  complain("kind=register name=%s want=%llx found=%llx", name, (unsigned long long)want, (unsigned long long)found);
}

/* Reads as what was written, inverted. */
static void check_liveness(uint64_t turn) {
  static uint32_t last;
  if (turn > 0) expect_register("liveness", (uint32_t)~last, get32(LIVENESS));
  last = stamp(3, 0, turn, 0);
  set32(LIVENESS, last);
}

/* ---- interrupts: each factorial raises one ---- */

/* uio_pci_generic masks INTx in the command register when it has fired; whoever reads the event takes the mask away. It leaves bus
 * mastering to its user too. PCI 3.0, 6.2.2: bit 1 memory, 2 bus master, 10 interrupt disable. */
static void unmask_intx(void) {
  uint16_t command;
  if (pread(config, &command, 2, 4) != 2) return;
  command = (command | 0x6) & ~0x400;
  if (pwrite(config, &command, 2, 4) != 2) complain("kind=config text=cannot-unmask-intx");
}

static uint32_t factorial(uint32_t n) {
  uint32_t result = 1;
  for (; n > 1; n--) result *= n;
  return result;
}

static void check_interrupt(uint64_t turn) {
  static int32_t seen = -1;
  uint32_t n = 3 + turn % 28;
  int32_t events = 0;
  struct pollfd event = {uio, POLLIN, 0};
  if (turn > 0) expect_register("status", RAISE, get32(STATUS) & RAISE);
  set32(STATUS, RAISE);
  set32(FACTORIAL, n);
  if (poll(&event, 1, PATIENCE_NS / 1000000) != 1 || read(uio, &events, 4) != 4) {
    atomic_fetch_add(&counters.irq_errors, 1);
    complain("kind=irq text=did-not-come status=%x irq=%x", get32(STATUS), get32(IRQ_STATUS));
  } else {
    atomic_fetch_add(&counters.irqs, 1);
    if (seen >= 0 && events != seen + 1) {
      atomic_fetch_add(&counters.irq_errors, 1);
      complain("kind=irq text=count want=%d found=%d", seen + 1, events);
    }
    seen = events;
  }
  uint32_t result = get32(FACTORIAL), pending = get32(IRQ_STATUS);
  if (result != factorial(n) || pending != 1) {
    atomic_fetch_add(&counters.irq_errors, 1);
    complain("kind=irq text=result n=%u want=%u found=%u irq=%x", n, factorial(n), result, pending);
  }
  set32(IRQ_ACK, pending);
  unmask_intx();
}

/* ---- DMA ---- */

static const volatile uint64_t *ring_page(unsigned page) { return (volatile uint64_t *)(reserved + (1 + page) * PAGE); }

static void verify_page(unsigned page) {
  if (!round_of[page]) return;
  const volatile uint64_t *p = ring_page(page);
  atomic_fetch_add(&counters.dma_checks, 1);
  for (unsigned w = 0; w < WORDS; w++) {
    uint64_t found = p[w];
    if (found == stamp(KIND, page, round_of[page], w)) continue;
    atomic_fetch_add(&counters.dma_errors, 1);
    complain("kind=dma page=%u word=%u round=%llu found=%llx", page, w, (unsigned long long)round_of[page], (unsigned long long)found);
    return;
  }
}

static int dma(uint64_t source, uint64_t destination, uint64_t direction) {
  static uint64_t last;
  uint64_t until = now_ns() + PATIENCE_NS;
  if (last) expect_register("destination", last, get64(DMA_DESTINATION));
  last = destination;
  set64(DMA_SOURCE, source);
  set64(DMA_DESTINATION, destination);
  set64(DMA_COUNT, EDU_TRANSFER);
  set64(DMA_COMMAND, DMA_START | direction);
  sleep_us(TRANSFER_US);
  while (get64(DMA_COMMAND) & DMA_START) {
    if (now_ns() > until) {
      atomic_fetch_add(&counters.dma_errors, 1);
      complain("kind=dma text=does-not-end command=%llx", (unsigned long long)get64(DMA_COMMAND));
      return -1;
    }
    sleep_us(20000);
  }
  atomic_fetch_add(&counters.dmas, 1);
  return 0;
}

int edu_open(volatile uint64_t **ram, uint64_t *ram_at) {
  char sys[300];
  if (find_pci("0x1234", "0x11e8", sys, sizeof sys) < 0 || open_all(sys) < 0) return -1;
  unmask_intx(); /* for bus mastering */
  *ram = (volatile uint64_t *)reserved;
  *ram_at = RESERVED;
  return 0;
}

int edu_through(uint64_t source, uint64_t destination) {
  return dma(source, BUFFER, 0) < 0 ? -1 : dma(BUFFER, destination, DMA_FROM_DEVICE);
}

static void dma_turn(unsigned page, uint64_t round) {
  uint64_t *source = (uint64_t *)(reserved + SOURCE);
  for (unsigned w = 0; w < WORDS; w++) source[w] = stamp(KIND, page, round, w);
  edu_verify_ring();
  if (dma(RESERVED + SOURCE, BUFFER, 0) < 0) return;
  edu_verify_ring();
  pthread_mutex_lock(&mutex);
  round_of[page] = 0; /* in the making */
  pthread_mutex_unlock(&mutex);
  if (dma(BUFFER, RESERVED + (1 + page) * PAGE, DMA_FROM_DEVICE) < 0) return;
  pthread_mutex_lock(&mutex);
  round_of[page] = round;
  verify_page(page);
  pthread_mutex_unlock(&mutex);
}

void edu_verify_ring(void) {
  pthread_mutex_lock(&mutex);
  for (unsigned page = 0; page < ring; page++) verify_page(page);
  pthread_mutex_unlock(&mutex);
}

static void *edu(void *unused) {
  (void)unused;
  for (uint64_t turn = 0;; turn++) {
    check_liveness(turn);
    check_interrupt(turn);
    dma_turn(turn % ring, turn / ring + 1);
  }
  return NULL;
}

int edu_start(void) {
  char sys[300];
  pthread_t thread;
  if (find_pci("0x1234", "0x11e8", sys, sizeof sys) < 0) return -1;
  if (open_all(sys) < 0) return 0;
  ring = options.ring_pages;
  if (ring < 1 || ring > RESERVED_SIZE / PAGE - 1) ring = 32;
  round_of = calloc(ring, sizeof *round_of);
  set32(IRQ_ACK, get32(IRQ_STATUS));
  unmask_intx();
  say("edu id=%x device=%s ring=%u", get32(ID), sys + strlen("/sys/bus/pci/devices/"), ring);
  if (!round_of) return 0;
  pthread_create(&thread, NULL, edu, NULL);
  return 0;
}
