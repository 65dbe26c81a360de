/* vfio-bringup, the VFIO device with no hardware, as the guest sees it (images/kmod/vfio-bringup/README.md): registers through sysfs
 * resource0, MSI and memory for DMA through our own module's /dev/bringup (images/guest/bringup-guest). bringup=1 asks for it.
 * One thread goes round: a slot of device memory is read again and rewritten; the device fills a piece of a ring with a pattern by DMA; a
 * pattern of ours is checked by the device, read into its memory and written back elsewhere. Every command ends with one MSI, which is
 * counted. The ring is never written by the CPU, and all of it is verified before each new command.
 * bringup=2: a device that is reset, stands still or is not there under it is noted, not complained of, and begun with anew, as a driver
 * has to; what it was doing just then is lost, what is in RAM is not. */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "workload.h"

#define BAR_SIZE 0x10000
#define BUFFER_SIZE (2UL << 20)
#define PIECE 0x20000UL
#define PIECES 8
#define SOURCE (PIECES * PIECE)
#define BLOCK 0x40000UL
#define BACK (SOURCE + BLOCK)
#define SLOTS 16
#define SLOT_WORDS 16
#define PATIENCE_MS 20000
#define LOOK_MS 500
#define PAUSE_MS 50 /* between two turns of bringup=2: faults are many, and a lab host has one CPU for the guest and what moves it */
#define DEVICE_ID 0x31554246

enum { ID = 0x00, MEMORY_SIZE = 0x08, SCRATCH = 0x10, WINDOW = 0x38, DMA_IOVA = 0x40, DMA_MEM = 0x48, DMA_LEN = 0x50, DMA_SEED = 0x54 };
enum { DMA_CMD = 0x5c, DMA_STATUS = 0x68, DMA_ERRORS = 0x6c, DMA_COUNT = 0x74, IRQ_COUNT = 0x80, MEMORY = 0x8000 };
enum { READ = 1, WRITE = 2, FILL = 3, CHECK = 4, IRQ = 0x10, BUSY = 1 };

static volatile uint8_t *bar;
static uint8_t *buffer;
static uint64_t address, irqs_before[4];
static int device = -1;
static uint32_t seed_of[PIECES]; /* 0: nothing there yet */
static uint32_t slot_seed[SLOTS];
static uint32_t commands; /* that the device has ended; 0: not known yet */
static uint32_t sent;     /* interrupts that it has sent; 0: not known yet */
static uint64_t scratch;  /* what was left there; 0: nothing yet */
static const char *met; /* trouble that was met and is not over; NULL: none */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static uint32_t get32(unsigned at) { return *(volatile uint32_t *)(bar + at); }
static void set32(unsigned at, uint32_t v) { *(volatile uint32_t *)(bar + at) = v; }
static uint64_t get64(unsigned at) { return *(volatile uint64_t *)(bar + at); }
static void set64(unsigned at, uint64_t v) { *(volatile uint64_t *)(bar + at) = v; }

/* README.md, "The pattern", of the first pass. */
static uint64_t pattern(uint32_t seed, uint64_t word) {
  uint64_t x = seed * 0x9e3779b97f4a7c15ull + word;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

static void verify(const char *what, const uint8_t *at, size_t size, uint32_t seed) {
  const volatile uint64_t *p = (const volatile uint64_t *)at;
  atomic_fetch_add(&counters.dma_checks, 1);
  for (size_t w = 0; w < size / 8; w++) {
    uint64_t found = p[w];
    if (found == pattern(seed, w)) continue;
    atomic_fetch_add(&counters.dma_errors, 1);
    complain("kind=bringup text=%s word=%zu seed=%u found=%llx", what, w, seed, (unsigned long long)found);
    return;
  }
}

void bringup_verify_ring(void) {
  pthread_mutex_lock(&mutex);
  for (unsigned n = 0; n < PIECES; n++)
    if (seed_of[n]) verify("ring", buffer + n * PIECE, PIECE, seed_of[n]);
  pthread_mutex_unlock(&mutex);
}

/* ---- finding and opening ---- */

static int find_bar(void) {
  char path[400], file[420];
  if (find_pci("0x1234", "0xfe01", path, sizeof path) < 0) return -1;
  snprintf(file, sizeof file, "%s/resource0", path);
  return open(file, O_RDWR | O_CLOEXEC);
}

static int read_irqs(uint64_t *irqs) {
  uint64_t now[5];
  if (read(device, now, sizeof now) != sizeof now) return -1;
  address = now[0];
  memcpy(irqs, now + 1, 4 * sizeof *irqs);
  return 0;
}

static int open_all(void) {
  int resource = find_bar();
  if (resource < 0) return -1;
  device = open("/dev/bringup", O_RDWR | O_CLOEXEC);
  if (device < 0 || read_irqs(irqs_before) < 0) return -1;
  bar = mmap(NULL, BAR_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, resource, 0);
  buffer = mmap(NULL, BUFFER_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, device, 0);
  close(resource);
  return bar == MAP_FAILED || buffer == MAP_FAILED ? -1 : 0;
}

/* ---- a device that was reset, stands still or is not there ---- */

static int holds(void) {
  uint64_t before = get64(SCRATCH);
  set64(SCRATCH, ~before);
  int held = get64(SCRATCH) == ~before;
  set64(SCRATCH, before);
  return held;
}

/* 0: none of these, so that what was seen is an error. */
static int trouble(void) {
  if (met || options.bringup < 2) return met != NULL;
  if (get32(ID) != DEVICE_ID) met = "gone";
  else if (get32(DMA_COUNT) < commands) met = "reset";
  else if (!holds()) met = "stands";
  return met != NULL;
}

/* Waits until the device answers; nothing is left of what it was to do. */
static void begin_anew(void) {
  say("note kind=bringup text=device-%s", met);
  while (get32(ID) != DEVICE_ID || !holds() || get32(DMA_STATUS) & BUSY) sleep_us(LOOK_MS * 100);
  sleep_us(LOOK_MS * 1000); /* an interrupt may be under way */
  read_irqs(irqs_before);
  memset(slot_seed, 0, sizeof slot_seed);
  commands = sent = 0;
  scratch = 0;
  met = NULL;
}

/* ---- commands, each with one MSI ---- */

static int wait_interrupt(void) {
  struct pollfd event = {device, POLLIN, 0};
  for (int waited = 0; waited < PATIENCE_MS; waited += LOOK_MS)
    if (poll(&event, 1, LOOK_MS) == 1) return 1;
    else if (trouble()) return 0;
  return 0;
}

/* One, of vector 0, and no other: none was lost and none came twice. The device's own count says the same. */
static void expect_interrupt(void) {
  uint64_t irqs[4];
  if (!wait_interrupt() || read_irqs(irqs) < 0) {
    if (met) return;
    atomic_fetch_add(&counters.irq_errors, 1);
    complain("kind=bringup text=no-interrupt status=%x", get32(DMA_STATUS));
    return;
  }
  atomic_fetch_add(&counters.irqs, 1);
  uint64_t others = irqs[1] + irqs[2] + irqs[3];
  uint32_t count = get32(IRQ_COUNT);
  int wrong = irqs[0] != irqs_before[0] + 1 || others || (sent && count != sent + 1);
  if (wrong && !trouble()) {
    atomic_fetch_add(&counters.irq_errors, 1);
    complain("kind=bringup text=interrupts want=%llu found=%llu others=%llu sent=%u,%u", (unsigned long long)irqs_before[0] + 1,
             (unsigned long long)irqs[0], (unsigned long long)others, sent, count);
  }
  memcpy(irqs_before, irqs, sizeof irqs);
  sent = count;
}

static int command(uint32_t op, size_t at, size_t size, uint64_t memory_or_seed) {
  set64(DMA_IOVA, address + at);
  set32(DMA_LEN, size);
  if (op == READ || op == WRITE) set64(DMA_MEM, memory_or_seed);
  else set32(DMA_SEED, memory_or_seed);
  set32(DMA_CMD, op | IRQ);
  expect_interrupt();
  uint32_t status = get32(DMA_STATUS), count = get32(DMA_COUNT);
  atomic_fetch_add(&counters.dmas, 1);
  atomic_fetch_add(&counters.dma_bytes, size);
  if (!met && !status && (!commands || count == commands + 1)) {
    commands = count;
    return 0;
  }
  if (trouble()) return -1;
  commands = count;
  atomic_fetch_add(&counters.dma_errors, 1);
  complain("kind=bringup text=command op=%u status=%x count=%u", op, status, count);
  return -1;
}

/* ---- a turn ---- */

static int check_scratch(uint32_t turn) {
  uint64_t found = get64(SCRATCH);
  if (scratch && found != scratch && trouble()) return -1;
  if (scratch) expect_register("scratch", scratch, found);
  scratch = pattern(turn, 1);
  set64(SCRATCH, scratch);
  return 0;
}

/* Some words of a page of device memory each: a byte of it is an exit of the virtual machine. */
static int check_memory(uint32_t turn) {
  unsigned slot = turn % SLOTS;
  uint64_t pages = get64(MEMORY_SIZE) / PAGE;
  set64(WINDOW, slot * (pages / 2) / SLOTS * PAGE);
  for (unsigned w = 0; w < SLOT_WORDS; w++) {
    uint64_t found = get64(MEMORY + 8 * w), want = pattern(slot_seed[slot], w);
    if (slot_seed[slot] && found != want && trouble()) return -1;
    if (slot_seed[slot]) expect_register("memory", want, found);
    set64(MEMORY + 8 * w, pattern(turn, w));
  }
  slot_seed[slot] = turn;
  return 0;
}

static int fill_piece(uint32_t turn) {
  unsigned n = turn % PIECES;
  bringup_verify_ring();
  pthread_mutex_lock(&mutex);
  seed_of[n] = 0; /* in the making */
  pthread_mutex_unlock(&mutex);
  if (command(FILL, n * PIECE, PIECE, turn) < 0) return -1;
  pthread_mutex_lock(&mutex);
  seed_of[n] = turn;
  verify("fill", buffer + n * PIECE, PIECE, turn);
  pthread_mutex_unlock(&mutex);
  return 0;
}

/* Out of RAM into the upper half of device memory, and back into another place. */
static int there_and_back(uint32_t turn) {
  uint64_t *source = (uint64_t *)(buffer + SOURCE), memory = get64(MEMORY_SIZE) / 2;
  uint32_t seed = turn | 1u << 31;
  for (size_t w = 0; w < BLOCK / 8; w++) source[w] = pattern(seed, w);
  if (command(CHECK, SOURCE, BLOCK, seed) < 0) return -1;
  uint32_t errors = get32(DMA_ERRORS);
  if (errors && trouble()) return -1;
  if (errors) {
    atomic_fetch_add(&counters.dma_errors, 1);
    complain("kind=bringup text=device-found-errors words=%u", errors);
  }
  if (command(READ, SOURCE, BLOCK, memory) < 0) return -1;
  memset(buffer + BACK, 0, BLOCK);
  if (command(WRITE, BACK, BLOCK, memory) < 0) return -1;
  verify("back", buffer + BACK, BLOCK, seed);
  return 0;
}

static void *bringup(void *unused) {
  (void)unused;
  for (uint32_t turn = 1;; turn++) {
    int whole = check_scratch(turn) == 0 && check_memory(turn) == 0 && fill_piece(turn) == 0 && there_and_back(turn) == 0;
    if (!whole && met) begin_anew();
    if (options.bringup > 1) sleep_us(PAUSE_MS * 1000);
  }
  return NULL;
}

int bringup_start(void) {
  pthread_t thread;
  if (open_all() < 0) return -1;
  say("bringup id=%x memory=%llu", get32(ID), (unsigned long long)get64(MEMORY_SIZE));
  pthread_create(&thread, NULL, bringup, NULL);
  return 0;
}
