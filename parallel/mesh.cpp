#include "parallel/mesh.h"

#include <algorithm>
#include <cmath>

#include "parallel/planned_communicator.h"

namespace sluice {
namespace {

constexpr unsigned kEdp = 1;
constexpr unsigned kEp = 2;
constexpr unsigned kCp = 4;
constexpr unsigned kReduces = 8;

// What joined() may be asked for.
constexpr unsigned kJoinedAxes[] = {kCp,  kEp,        kEp | kCp,       kEdp | kEp,
                                    kEdp, kEdp | kCp, kEdp | kEp | kCp};

unsigned mask_of(Axis axis) {
  switch (axis) {
    case Axis::dp:
      return kEdp | kEp;
    case Axis::ep:
      return kEp;
    case Axis::edp:
      return kEdp;
    case Axis::cp:
      return kCp;
  }
  throw Error(ExitCode::bug, "no such axis of the mesh");
}

// The index of a group. Axes of one rank distinguish nothing.
unsigned group_index(const MeshShape& shape, unsigned mask) {
  if ((mask & kEdp) != 0) mask |= kReduces;
  if (shape.edp() == 1) mask &= ~kEdp;
  if (shape.ep == 1) mask &= ~kEp;
  if (shape.cp == 1) mask &= ~kCp;
  return mask;
}

// How far apart two meshes are, in factors.
double distance(const MeshShape& a, const MeshShape& b) {
  const auto factor = [](int x, int y) { return std::fabs(std::log(double(x) / double(y))); };
  return factor(a.cp, b.cp) + factor(a.ep, b.ep) + (a.dp == kAuto ? 0 : factor(a.dp, b.dp));
}

std::string nearest_meshes(const MeshShape& asked, int world) {
  std::vector<MeshShape> meshes = possible_meshes(world);
  std::stable_sort(meshes.begin(), meshes.end(), [&](const MeshShape& a, const MeshShape& b) {
    return distance(asked, a) < distance(asked, b);
  });
  std::string text;
  for (size_t i = 0; i < std::min<size_t>(3, meshes.size()); ++i)
    text += (i == 0 ? "" : ", or ") + to_string(meshes[i]);
  return text;
}

}  // namespace

std::string to_string(const MeshShape& shape) {
  return concat("dp ", shape.dp, " x ep ", shape.ep, " x cp ", shape.cp);
}

std::vector<MeshShape> possible_meshes(int world) {
  std::vector<MeshShape> meshes;
  for (int cp = 1; cp <= world; ++cp) {
    if (world % cp != 0) continue;
    const int dp = world / cp;
    for (int ep = 1; ep <= dp; ++ep) {
      if (dp % ep == 0) meshes.push_back({.dp = dp, .ep = ep, .cp = cp});
    }
  }
  return meshes;
}

MeshShape resolve_mesh(const MeshShape& asked, int world) {
  SLUICE_CHECK(world >= 1, "a world of ", world, " ranks");
  if (asked.dp < kAuto || asked.ep < 1 || asked.cp < 1) {
    throw UsageError(concat("parallel.dp, ep and cp are at least 1 (or dp: auto), got dp ",
                            asked.dp, ", ep ", asked.ep, ", cp ", asked.cp));
  }
  const auto refuse = [&](const std::string& reason) {
    throw UsageError(concat(reason, "; ", world, world == 1 ? " rank" : " ranks",
                            " can form, nearest first: ", nearest_meshes(asked, world)));
  };
  MeshShape shape = asked;
  if (shape.dp == kAuto) {
    if (world % shape.cp != 0)
      refuse(concat("parallel.cp ", shape.cp, " does not divide the ", world, " ranks started"));
    shape.dp = world / shape.cp;
  } else if (int64_t{shape.dp} * shape.cp != world) {
    refuse(concat("parallel.dp ", shape.dp, " x parallel.cp ", shape.cp, " needs ",
                  int64_t{shape.dp} * shape.cp, " ranks, ", world,
                  world == 1 ? " was started" : " were started"));
  }
  if (shape.dp % shape.ep != 0)
    refuse(concat("parallel.ep ", shape.ep, " does not divide parallel.dp ", shape.dp));
  return shape;
}

MeshCoordinates coordinates_of(const MeshShape& shape, int rank) {
  SLUICE_CHECK(rank >= 0 && rank < shape.world(), "rank ", rank, " in a mesh of ", shape.world());
  const int dp = rank / shape.cp;
  return {.dp = dp, .ep = dp % shape.ep, .edp = dp / shape.ep, .cp = rank % shape.cp};
}

int rank_of(const MeshShape& shape, const MeshCoordinates& at) {
  SLUICE_CHECK(at.dp >= 0 && at.dp < shape.dp && at.cp >= 0 && at.cp < shape.cp, "dp ", at.dp,
               ", cp ", at.cp, " in ", to_string(shape));
  return at.dp * shape.cp + at.cp;
}

namespace {

std::string name_of(const MeshShape& shape, unsigned index) {
  std::vector<const char*> axes;
  const bool experts_apart = shape.ep > 1 && (index & kEp) == 0;
  if ((index & kReduces) != 0) {
    axes.push_back(experts_apart ? "edp" : "dp");
  } else if ((index & kEp) != 0) {
    axes.push_back("ep");
  }
  if ((index & kCp) != 0) axes.push_back("cp");
  std::string name;
  for (const char* axis : axes) name += (name.empty() ? "" : "+") + std::string(axis);
  return name;
}

}  // namespace

Mesh::Mesh(Communicator& world, const MeshShape& shape)
    : world_(world), shape_(shape), at_(coordinates_of(shape, world.rank())) {
  make_groups();
}

Mesh::Mesh(const MeshShape& shape, int rank)
    : planned_world_(make_planned_communicator(shape.world(), rank)),
      world_(*planned_world_),
      shape_(shape),
      at_(coordinates_of(shape, rank)) {
  make_groups();
}

void Mesh::make_groups() {
  SLUICE_CHECK(resolve_mesh(shape_, world_.size()) == shape_, "an unresolved mesh");
  for (const unsigned axes : kJoinedAxes) {
    std::unique_ptr<Communicator>& group = groups_[group_index(shape_, axes)];
    if (group == nullptr) group = make_group(axes);
  }
}

std::unique_ptr<Communicator> Mesh::make_group(unsigned mask) const {
  const auto place = [&](bool edp, bool ep, bool cp) {  // of this rank, by those axes alone
    return ((edp ? at_.edp : 0) * (ep ? shape_.ep : 1) + (ep ? at_.ep : 0)) * (cp ? shape_.cp : 1) +
           (cp ? at_.cp : 0);
  };
  const bool edp = mask & kEdp, ep = mask & kEp, cp = mask & kCp;
  if (planned_world_ != nullptr) {
    const int size = (edp ? shape_.edp() : 1) * (ep ? shape_.ep : 1) * (cp ? shape_.cp : 1);
    return make_planned_communicator(size, place(edp, ep, cp));
  }
  // A group is the ranks that are equal on all axes outside of the mask.
  return world_.split(place(!edp, !ep, !cp), world_.rank());
}

Communicator& Mesh::joined(std::initializer_list<Axis> axes) const {
  unsigned mask = 0;
  for (const Axis axis : axes) mask |= mask_of(axis);
  SLUICE_CHECK(mask != 0, "a group along no axis");
  return *groups_[group_index(shape_, mask)];
}

void Mesh::shutdown() {
  for (const std::unique_ptr<Communicator>& group : groups_) {
    if (group != nullptr) group->shutdown();
  }
}

std::vector<Mesh::Group> Mesh::groups() const {
  std::vector<Group> groups;
  for (unsigned index = 0; index < groups_.size(); ++index) {
    if (groups_[index] == nullptr || groups_[index]->size() == 1) continue;
    groups.push_back({name_of(shape_, index), groups_[index].get()});
  }
  return groups;
}

}  // namespace sluice
