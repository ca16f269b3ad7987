"""What named acoustic measures are about: pitch, loudness, formants …

Names are those of openSMILE's sets (Eyben et al., 2016, for GeMAPS; Schuller et al., 2013, for
ComParE) and of packages that name theirs alike, such as ser-praat.
"""

import re

# The first pattern that a name begins with says its group.
GROUPS = {
    "rate and pauses": r"rate|pause|loudnessPeaksPerSec|(Mean|Stddev)?(Un)?[vV]oicedSegment",
    "pitch": r"F0",
    "formants": r"F[1-9]",
    "jitter": r"jitter",
    "shimmer": r"shimmer",
    "harmonics-to-noise ratio": r"HNR|logHNR",
    "harmonic differences": r"logRelF0",
    "voicing": r"voic(ing|eProb)",
    "loudness": r"loudness|intensity|equivalentSoundLevel|audspec(Rasta)?_lengthL1norm"
    r"|pcm_(RMSenergy|LOGenergy|intensity|loudness)",
    "zero crossings": r"pcm_zcr",
    "MFCC": r"(pcm_fftMag_)?mfcc",
    "auditory spectrum": r"audSpec",
    "spectrum": r"pcm_fftMag|spectral|alphaRatio|hammarberg|slope|lsp|logMelFreqBand|pcm_Mag",
}


def measure_group(name: str) -> str:
    """The group of a measure; one that none of them begins like is called by its first word.

    >>> measure_group("F0semitoneFrom27.5Hz_sma3nz_amean"), measure_group("F2bandwidth_sma3nz")
    ('pitch', 'formants')
    >>> measure_group("MeanUnvoicedSegmentLength"), measure_group("tilt_mean")
    ('rate and pauses', 'tilt')
    """
    for group, pattern in GROUPS.items():
        if re.match(pattern, name):
            return group
    return re.split(r"[_.\[]", name)[0]
