// See tracer_files.h.
#include "tracer_files.h"

#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "tracer_memory.h"

namespace ferry {

bool TracedFiles::Matches(const std::string& link, uint32_t* kind) const {
  for (const TraceRules::Path& path : rules_.paths) {
    if (path.exact ? link != path.prefix : link.compare(0, path.prefix.size(), path.prefix) != 0) continue;
    *kind = path.kind;
    return true;
  }
  return false;
}

std::shared_ptr<OpenFile> TracedFiles::Add(const std::string& link, uint32_t kind) {
  auto file = std::make_shared<OpenFile>();
  file->id = next_++;
  file->kind = kind;
  file->link = link;
  files_.erase(std::remove_if(files_.begin(), files_.end(), [](const auto& each) { return each.expired(); }), files_.end());
  files_.push_back(file);
  return file;
}

std::shared_ptr<OpenFile> TracedFiles::Find(pid_t pid, int fd) {
  std::string link = LinkOf(pid, fd);
  if (link.empty()) return nullptr;
  for (const Owned& owned : owned_) {
    std::shared_ptr<FdTable> table = owned.table.lock();
    if (!table) continue;
    for (const auto& [number, file] : *table) {
      if (file->link == link && syscall(SYS_kcmp, pid, owned.pid, KCMP_FILE, fd, number) == 0) return file;
    }
  }
  std::shared_ptr<OpenFile> named;
  int found = 0;
  for (const auto& each : files_) {
    std::shared_ptr<OpenFile> file = each.lock();
    if (file && file->link == link) {
      named = file;
      found++;
    }
  }
  uint32_t kind = 0;
  bool wanted = Matches(link, &kind);
  // A data fd has a name that its driver chose: it is known only by having been seen before, and only kcmp tells two of them apart.
  if (found > 0 && !wanted) kind = named->kind;
  if (found == 1 && !wanted) return named;
  return wanted || found > 0 ? Add(link, kind) : nullptr;
}

std::shared_ptr<FdTable> TracedFiles::NewTable() { return std::make_shared<FdTable>(); }

std::shared_ptr<FdTable> TracedFiles::Copy(const FdTable& table) { return std::make_shared<FdTable>(table); }

void TracedFiles::Owner(const std::shared_ptr<FdTable>& table, pid_t pid) {
  owned_.erase(std::remove_if(owned_.begin(), owned_.end(), [pid](const Owned& each) { return each.table.expired() || each.pid == pid; }),
               owned_.end());
  owned_.push_back({table, pid});
}

}  // namespace ferry
