// Finds the objects of an image, without Python: README.md.
#include <ATen/ops/from_blob.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <memory>
#include <opencv2/core.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <stdexcept>
#include <string>
#include <vector>

// Of librefinedet.so. To be linked with it is all that a program has to do: loaded, it registers the operators.
extern "C" const char* refinedet_version();

namespace {

using torch::inductor::AOTIModelPackageLoader;

constexpr const char* kExport = "make one by `refinedet export MODEL --format aoti --out FILE.pt2`";

// What the package says of itself: JSON, which OpenCV reads.
struct Description {
  cv::Size size;  // of the network's input
  std::vector<std::string> classes;
  std::string device;  // "cpu" or "cuda"
};

// What libtorch does with a package; of an error, which has the whole stack, the first line.
template <class Function>
auto from_package(const std::string& package, const Function& function) {
  try {
    return function();
  } catch (const std::exception& error) {
    const std::string reason = error.what();
    throw std::runtime_error(package + " cannot be read (" + reason.substr(0, reason.find('\n')) + "): " + kExport);
  }
}

Description describe(const std::string& package) {
  const auto metadata =
      from_package(package, [&] { return AOTIModelPackageLoader::load_metadata_from_package(package, "model"); });
  const auto text = metadata.find("refinedet");
  if (text == metadata.end()) throw std::runtime_error(package + " has no metadata of refinedet: " + kExport);
  const cv::FileStorage json(text->second, cv::FileStorage::READ | cv::FileStorage::MEMORY);
  const std::string version = json["refinedet"];
  if (version != refinedet_version())
    throw std::runtime_error(package + " was exported by refinedet " + version + ", and librefinedet.so is of " +
                             refinedet_version() + ": export it again, or link the library of that version");
  // Any number of images at a time is no number at all: null.
  if (static_cast<int>(json["raw"]) != 0 || (json["batch"].isInt() && static_cast<int>(json["batch"]) != 1))
    throw std::runtime_error(package + " is of several images or holds no detections: " + kExport);
  Description description;
  description.size = {static_cast<int>(json["size"][1]), static_cast<int>(json["size"][0])};
  json["classes"] >> description.classes;
  json["device"] >> description.device;
  return description;
}

cv::Mat read(const std::string& path) {
  const cv::Mat image = cv::imread(path, cv::IMREAD_COLOR);
  if (image.empty()) throw std::runtime_error(path + " is absent or no image: give one that OpenCV reads");
  return image;
}

// [1,3,H,W] float32: planes blue, green, red, 0..255. Mean and deviation are in the network.
at::Tensor prepare(const cv::Mat& image, cv::Size size) {
  cv::Mat pixels;
  image.convertTo(pixels, CV_32F);
  cv::resize(pixels, pixels, size, 0, 0, cv::INTER_LINEAR);
  const at::Tensor interleaved = at::from_blob(pixels.data, {1, size.height, size.width, 3});
  return interleaved.permute({0, 3, 1, 2}).clone(at::MemoryFormat::Contiguous);
}

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += c;
  }
  return result + '"';
}

// Boxes come in units of the image side, and leave as pixels of the image, clipped to it.
void print(const std::vector<at::Tensor>& outputs, const Description& description, cv::Size image, float threshold) {
  const at::Tensor boxes = outputs.at(0).cpu(), scores = outputs.at(1).cpu(), labels = outputs.at(2).cpu();
  const int64_t count = outputs.at(4).cpu().const_data_ptr<int64_t>()[0];
  const float limits[4] = {static_cast<float>(image.width), static_cast<float>(image.height),
                           static_cast<float>(image.width), static_cast<float>(image.height)};
  for (int64_t row = 0; row < count; ++row) {
    const float score = scores.const_data_ptr<float>()[row];
    if (score <= threshold) break;  // rows come by descending score
    float box[4];
    for (int i = 0; i < 4; ++i)
      box[i] = std::clamp(boxes.const_data_ptr<float>()[4 * row + i] * limits[i], 0.0f, limits[i] - 1.0f);
    const std::string& name = description.classes.at(static_cast<size_t>(labels.const_data_ptr<int64_t>()[row] - 1));
    std::printf("{\"class\": %s, \"score\": %.9g, \"box\": [%.9g, %.9g, %.9g, %.9g]}\n", quoted(name).c_str(), score,
                box[0], box[1], box[2], box[3]);
  }
}

void detect(const std::string& package, const std::string& path, float threshold) {
  const Description description = describe(package);
  const cv::Mat image = read(path);
  const auto network = from_package(package, [&] { return std::make_unique<AOTIModelPackageLoader>(package); });
  const at::Tensor pixels = prepare(image, description.size).to(at::Device(description.device));
  print(network->run({pixels}), description, image.size(), threshold);
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3 || count > 4) {
    std::cerr << "usage: detect PACKAGE.pt2 IMAGE [SCORE_THRESHOLD]\n";
    return 2;
  }
  try {
    detect(arguments[1], arguments[2], count == 4 ? std::stof(arguments[3]) : 0.5f);
  } catch (const std::exception& error) {
    std::cerr << "detect: error: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
