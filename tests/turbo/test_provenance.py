"""What an mp4 says about its making, and how a changed copy differs from it."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import av
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from turbo.provenance import AI_GENERATED, Signer, compare_clips, main, read_provenance
from turbo.video import Video, load_video

RECIPE = {"model": "shapes-turbo", "prompt": "a red star", "seed": 3, "dtype": "float32"}
KEY_USES = [
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
    *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
]


@pytest.fixture
def video() -> Video:
    """A red square crosses a blue sky."""
    frames = np.full((8, 16, 16, 3), (20, 30, 160), np.uint8)
    for index, frame in enumerate(frames):
        frame[4:8, index : index + 4] = (220, 30, 40)
    return Video(frames, 8, RECIPE)


@pytest.fixture
def clip(video, tmp_path):
    return video.save(tmp_path / "clip.mp4", enlarge=4)


def encode_again(clip, path, **options):
    with av.open(str(clip)) as source, av.open(str(path), "w") as target:
        target.metadata["comment"] = source.metadata["comment"]
        stream = target.add_stream("libx264", rate=8, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for frame in source.decode(video=0):
            frame.pict_type = 0
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    return path


def test_a_generated_video_is_marked_as_such_for_programs_that_read_iptc(video, clip, tmp_path):
    plain = Video(video.frames, 8).save(tmp_path / "plain.mp4", enlarge=4)

    with av.open(str(clip), options={"export_xmp": "1"}) as container:
        assert f'DigitalSourceType="{AI_GENERATED}"' in container.metadata["xmp"]
    assert read_provenance(clip).ai_generated and not read_provenance(plain).ai_generated
    assert read_provenance(clip).recipe == RECIPE == load_video(clip).recipe


def test_what_was_done_to_a_copy_is_told_apart(video, clip, tmp_path):
    edited = Video(video.frames, 8, {**RECIPE, "dtype": "float16"})
    flipped = Video(video.frames.copy(), 8, RECIPE)
    flipped.frames[4, 12, 3] = 255 - flipped.frames[4, 12, 3]
    shorter = Video(video.frames[:6], 8, RECIPE)
    same = tmp_path / "same.mp4"
    same.write_bytes(clip.read_bytes())

    def compare(changed: Video):
        return compare_clips(changed.save(tmp_path / "changed.mp4", enlarge=4), clip)

    assert compare_clips(same, clip).kind == "file"
    assert compare(edited).kind == "frames"
    assert (compare(flipped).kind, compare(flipped).worst) == ("other frames", 5)
    assert compare(flipped).largest > 100
    assert (compare(shorter).kind, compare(shorter).worst) == ("other frames", 7)
    assert compare_clips(encode_again(clip, same, crf="23"), clip).kind == "encoded again"
    assert compare(Video(video.frames[:, :8], 8, RECIPE)).kind == "other size"
    same.write_bytes(clip.read_bytes().replace(b"avc1", b"xxxx"))
    assert compare_clips(same, clip).kind == "encoded again"


def test_a_visible_mark_is_in_the_recipe_and_in_a_corner_of_every_frame(tmp_path):
    plain = Video(np.full((4, 96, 160, 3), 90, np.uint8), 8, RECIPE)
    marked = Video(plain.frames, 8, {**RECIPE, "visible_mark": True})
    files = [plain.save(tmp_path / "plain.mp4"), marked.save(tmp_path / "marked.mp4")]

    difference = np.abs(np.subtract(*(load_video(file).frames.astype(int) for file in files)))
    changed = (difference.max(axis=3) > 20).any(axis=0).nonzero()
    assert (difference[:, 75:, :60].max(axis=(1, 2, 3)) > 100).all()
    assert changed[0].min() > 70 and changed[1].max() < 100
    assert compare_clips(*files).kind == "other frames"
    assert marked.save(tmp_path / "again.mp4").read_bytes() == files[1].read_bytes()


def test_a_visible_mark_is_whole_or_refused(tmp_path):
    tall = Video(np.full((1, 320, 96, 3), 90, np.uint8), 8, {**RECIPE, "visible_mark": True})
    shown = (load_video(tall.save(tmp_path / "tall.mp4")).frames[0] > 200).all(axis=2)

    assert shown.any() and not shown[:, -4:].any()
    with pytest.raises(ValueError, match="visible mark"):
        replace(tall, frames=tall.frames[:, :, :32]).save(tmp_path / "narrow.mp4")


def test_saving_a_mark_leaves_the_frames_as_they_are(tmp_path):
    marked = Video(np.full((1, 96, 160, 3), 90, np.uint8), 8, {**RECIPE, "visible_mark": True})

    marked.save(tmp_path / "marked.mp4")

    assert (marked.frames == 90).all()


@pytest.fixture
def signer(tmp_path):
    """A certificate for signing documents, below one of its own authority."""
    pytest.importorskip("c2pa")
    now, keys = datetime.now(UTC), [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, to)]) for to in ("CA", "Me")]
    certificates = []
    for number, (key, name) in enumerate(zip(keys, names, strict=True)):
        usage = dict.fromkeys(KEY_USES, False)
        usage["digital_signature" if number else "key_cert_sign"] = True
        certificate = (
            x509.CertificateBuilder(names[0], name, key.public_key(), number + 1)
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=not number, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key()), False
            )
        )
        if number:
            uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            certificate = certificate.add_extension(uses, critical=False)
        signed = certificate.sign(keys[0], hashes.SHA256())
        certificates.insert(0, signed.public_bytes(Encoding.PEM))
    (tmp_path / "chain.pem").write_bytes(b"".join(certificates))
    (tmp_path / "key.pem").write_bytes(
        keys[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return Signer(tmp_path / "chain.pem", tmp_path / "key.pem")


def test_a_signed_video_says_who_made_it_and_keeps_frames_recipe_and_mark(
    signer, video, clip, tmp_path
):
    import c2pa

    signed = video.save(tmp_path / "signed.mp4", enlarge=4, signer=signer)

    assert compare_clips(signed, clip).kind == "frames"
    assert read_provenance(signed) == read_provenance(clip)
    with c2pa.Reader(signed) as reader:
        [manifest] = json.loads(reader.json())["manifests"].values()
    assert manifest["signature_info"]["issuer"] == "Me"
    [actions] = [entry for entry in manifest["assertions"] if "actions" in entry["label"]]
    assert actions["data"]["actions"][0]["digitalSourceType"] == AI_GENERATED
    assert {file.name for file in tmp_path.glob("*.mp4")} == {"clip.mp4", "signed.mp4"}


def test_a_key_that_cannot_sign_is_refused_and_writes_nothing(signer, video, tmp_path):
    signer.key.write_text("no key")

    with pytest.raises(ValueError, match="cannot sign"):
        video.save(tmp_path / "new.mp4", enlarge=4, signer=signer)

    assert not list(tmp_path.glob("*.mp4"))


@pytest.mark.parametrize("content", [b"", b"no video", b"#EXTM3U\nhttp://127.0.0.1/a.ts\n"])
def test_a_file_that_is_no_mp4_is_refused(content, clip, tmp_path):
    other = tmp_path / "other.mp4"
    other.write_bytes(content)

    with pytest.raises(ValueError, match="not an mp4"):
        read_provenance(other)
    with pytest.raises(ValueError, match="not an mp4"):
        compare_clips(other, clip)


def test_a_damaged_video_is_refused(clip, tmp_path):
    content = clip.read_bytes()
    start = content.index(b"mdat") + 40
    other = tmp_path / "other.mp4"
    other.write_bytes(content[:start] + bytes(len(content) - start))

    with pytest.raises(ValueError, match="damaged"):
        compare_clips(other, clip)


def test_a_much_longer_video_is_not_decoded_to_its_end(video, clip, tmp_path):
    longer = Video(np.repeat(video.frames, 20, axis=0), 8, RECIPE)

    found = compare_clips(longer.save(tmp_path / "longer.mp4", enlarge=4), clip)

    assert found.frames == len(video.frames) + 1


def test_the_command_needs_no_torch(clip):
    program = (
        "import sys; sys.argv[1:] = [sys.argv[1]]; from turbo.provenance import main; main();"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(clip)], capture_output=True, text=True, check=True
    )

    assert json.loads(done.stdout) == {"recipe": RECIPE, "ai_generated": True}


@pytest.mark.parametrize("other", ["absent.mp4", "."])
def test_what_cannot_be_read_is_refused_in_words(other, clip, tmp_path, monkeypatch, capsys):
    for pair in ([clip, tmp_path / other], [tmp_path / other, clip], [tmp_path / other]):
        monkeypatch.setattr("sys.argv", ["provenance", *map(str, pair)])

        with pytest.raises(SystemExit) as end:
            main()

        assert end.value.code == 2
        assert capsys.readouterr().out == ""
