// See ram_file.h. A memfd lies on a mount of the kernel's own, whose pages are small unless the host's shmem_enabled says otherwise (never, by
// default). A tmpfs mount of our own takes huge pages at the first touch, as anonymous memory does: a nested guest boots in half the time
// (measured). The mount has no place in any directory and goes with the file's last descriptor. Specs: mount_setattr family of calls
// fsopen(2) ff., tmpfs(5) huge=advise, Documentation/admin-guide/mm/transhuge.rst.
#include "ram_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

namespace ferry {
namespace {

constexpr uint64_t kHugePage = uint64_t{2} << 20;
constexpr char kName[] = "ferry-ram";

// linux/mount.h, which older C libraries clash with.
constexpr unsigned kFsopenCloexec = 1;
constexpr unsigned kFsmountCloexec = 1;
constexpr unsigned kFsconfigSetString = 1;
constexpr unsigned kFsconfigCmdCreate = 6;

/** A detached tmpfs mount with huge=advise and no limit of its own; -1 without CAP_SYS_ADMIN or before Linux 5.2. */
int MountOwnTmpfs() {
  int context = static_cast<int>(syscall(SYS_fsopen, "tmpfs", kFsopenCloexec));
  if (context < 0) return -1;
  auto set = [context](const char* key, const char* value) {
    return syscall(SYS_fsconfig, context, kFsconfigSetString, key, value, 0) == 0;
  };
  int mount = -1;
  if (set("huge", "advise") && set("size", "0") && set("mode", "0700") &&
      syscall(SYS_fsconfig, context, kFsconfigCmdCreate, nullptr, nullptr, 0) == 0) {
    mount = static_cast<int>(syscall(SYS_fsmount, context, kFsmountCloexec, 0));
  }
  ::close(context);
  return mount;
}

int OpenOnOwnTmpfs() {
  int mount = MountOwnTmpfs();
  if (mount < 0) return -1;
  // With a name for as long as it takes to remove it: /proc/PID/maps then says what this memory is.
  int fd = openat(mount, kName, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd >= 0) unlinkat(mount, kName, 0);
  ::close(mount);
  return fd;
}

}  // namespace

int OpenRamFile(bool hugePages) {
  int fd = hugePages ? OpenOnOwnTmpfs() : -1;
  return fd >= 0 ? fd : memfd_create(kName, MFD_CLOEXEC);
}

void* MapRam(int fd, uint64_t size) {
  // Room to choose an aligned place in; what is not needed is given back.
  void* room = mmap(nullptr, size + kHugePage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) return MAP_FAILED;
  uint8_t* start = static_cast<uint8_t*>(room);
  uint8_t* base = start + (kHugePage - reinterpret_cast<uintptr_t>(start) % kHugePage) % kHugePage;
  void* mapped = mmap(base, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd, 0);
  if (mapped == MAP_FAILED) {
    int err = errno;
    munmap(room, size + kHugePage);
    errno = err;
    return MAP_FAILED;
  }
  if (base > start) munmap(start, base - start);
  uint8_t* end = start + size + kHugePage;
  if (base + size < end) munmap(base + size, end - (base + size));
  return mapped;
}

}  // namespace ferry
